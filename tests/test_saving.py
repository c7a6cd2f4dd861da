"""What is read back is what was written; what is not a model is refused in words; a write that fails leaves the old model."""
import json, os, shutil, signal, socket, stat
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest, torch
from sdn_nb.vae import SDNVAE, VAEConfig
from sdn_nb.saving import atomic, shipped

cfg = VAEConfig((4,6), channels=1, levels=17, depth=2, downsample=(0,), h=4, z=1, features=3, mix=2)

@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return SDNVAE(cfg).save_pretrained(tmp_path/'model', data=dict(name='noise'))

def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}
def model_section(folder, **changes):
    config = json.loads((folder/'config.json').read_text())
    config['model'] |= changes
    (folder/'config.json').write_text(json.dumps({k: {f: v for f,v in s.items() if v is not None} for k,s in config.items()}))

def test_weights_come_back_bit_for_bit(folder):
    model = SDNVAE.from_pretrained(str(folder))
    assert not model.training and contents(model.save_pretrained(folder.parent/'again'))['model.safetensors']==contents(folder)['model.safetensors']
    assert {p.name for p in folder.iterdir()}=={'config.json','model.safetensors','README.md'}

@pytest.mark.skipif(os.name=='nt', reason='POSIX permissions')
def test_files_get_the_usual_permissions(folder):
    (folder/'usual').touch()
    assert len({stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()})==1

@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_missing_file(folder, name):
    (folder/name).unlink()
    with pytest.raises(FileNotFoundError, match=f'no {name} in .*model'): SDNVAE.from_pretrained(folder)

@pytest.mark.parametrize('changes,words', [(dict(wings=2), 'wings'), (dict(depth=0), '`depth` must be'), (dict(levels=1), '`levels` must be'), (dict(image_size=[5,6]), 'next size that fits')], ids=str)
def test_wrong_fields(folder, changes, words):
    model_section(folder, **changes)
    with pytest.raises(ValueError, match=words): SDNVAE.from_pretrained(folder)

@pytest.mark.parametrize('text', ['{', '', '{}', '[]', '{"model": 3}'], ids=['cut','empty','no-model','list','number'])
def test_config_is_not_one(folder, text):
    (folder/'config.json').write_text(text)
    with pytest.raises(ValueError, match=r'from_pretrained: .*config\.json'): SDNVAE.from_pretrained(folder)

@pytest.mark.parametrize('changes', [dict(image_size=None), dict(image_size=8), dict(levels='many'), dict(image_size=[4.,6.]), dict(image_size=['4','6']),
    dict(levels=17.5), dict(downsample=[.5]), dict(n_directions='all')], ids=str)
def test_fields_of_wrong_type(folder, changes):
    model_section(folder, **changes)
    with pytest.raises(ValueError, match=f'`?{next(iter(changes))}`?'): SDNVAE.from_pretrained(folder)

@pytest.mark.parametrize('cut', [0, 100, -1])
def test_truncated_weights(folder, cut):
    f = folder/'model.safetensors'
    f.write_bytes(f.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r'from_pretrained: .*model\.safetensors'): SDNVAE.from_pretrained(folder)

@pytest.mark.parametrize('changes', [dict(h=5), dict(depth=3), dict(sdn=False)], ids=str)
def test_weights_of_another_model(folder, changes):
    model_section(folder, **changes)
    with pytest.raises(ValueError, match=r'from_pretrained: .*model\.safetensors'): SDNVAE.from_pretrained(folder)

# Writes that fail

def test_sections_that_are_not_json_change_nothing(folder):
    before = contents(folder)
    with pytest.raises(TypeError): SDNVAE(cfg).save_pretrained(folder, data=object())
    assert contents(folder)==before

@pytest.mark.parametrize('nth', [0, 1], ids=['config','weights'])
def test_a_full_disk_changes_nothing(folder, monkeypatch, nth):
    before,calls,write = contents(folder),count(),Path.write_bytes
    def fail(self, data):
        if next(calls)<nth: return write(self, data)
        with open(self, 'wb') as f: f.write(b'ha')
        raise OSError('disk full')
    monkeypatch.setattr(Path, 'write_bytes', fail)
    with pytest.raises(OSError, match='disk full'): SDNVAE(replace(cfg, h=5)).save_pretrained(folder)
    assert contents(folder)==before

def test_any_bit_that_flips_is_found(folder):
    "In the header or in the numbers: the model is refused by the name of its file, or is the same"
    whole,before = (folder/'model.safetensors').read_bytes(),SDNVAE.from_pretrained(folder).state_dict()
    places = [*range(0, len(whole), max(1, len(whole)//150)), *range(8, 260)]
    for n,at in enumerate(places):
        (folder/'model.safetensors').write_bytes(whole[:at] + bytes([whole[at]^1<<n%8]) + whole[at+1:])
        try: now = SDNVAE.from_pretrained(folder).state_dict()
        except ValueError as e: assert 'model.safetensors is damaged' in str(e)
        else: assert all(torch.equal(now[k], before[k]) for k in before) and at<8+int.from_bytes(whole[:8], 'little')

def test_weights_of_another_run(folder):
    for run in 'ab': SDNVAE.from_pretrained(folder).save_pretrained(folder.parent/run, run=run)
    os.replace(folder.parent/'a/model.safetensors', folder.parent/'b/model.safetensors')
    with pytest.raises(ValueError, match='are of different runs'): SDNVAE.from_pretrained(folder.parent/'b')

def test_atomic_under_interruption(tmp_path):
    (tmp_path/'f').write_text('old')
    with pytest.raises(KeyboardInterrupt):
        with atomic(tmp_path/'f') as tmp:
            tmp.write_text('half'); os.kill(os.getpid(), signal.SIGINT); tmp.write_text('whole')
    assert contents(tmp_path)=={'f': b'old'}

@pytest.mark.parametrize('kind', ['pipe','socket','link to a pipe','link to a folder','folder'])
def test_atomic_replaces_files_only(tmp_path, kind):
    "A device whose name a file has taken is lost to all programs of the machine"
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'folder').mkdir()
    with socket.socket(socket.AF_UNIX) as s: s.bind(os.path.relpath(tmp_path/'socket'))
    for what in ('pipe','folder'): (tmp_path/f'link to a {what}').symlink_to(tmp_path/what)
    before = {p.name: p.lstat().st_ino for p in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=f"{tmp_path/kind} is a folder, a device or a pipe.*give another name"):
        with atomic(tmp_path/kind) as tmp: tmp.touch()
    assert {p.name: p.lstat().st_ino for p in tmp_path.iterdir()}==before

def test_atomic_leaves_what_a_link_leads_to(tmp_path):
    "Folders of a cache are made of links to files that others share"
    (tmp_path/'shared').write_text('theirs')
    (tmp_path/'link').symlink_to('shared')
    with atomic(tmp_path/'link') as tmp: tmp.write_text('ours')
    assert contents(tmp_path)=={'shared': b'theirs', 'link': b'ours'}

@pytest.mark.parametrize('name', shipped())
def test_models_of_the_package_have_a_digest(name, tmp_path):
    shutil.copytree(shipped()[name], tmp_path/name)
    file = tmp_path/name/'model.safetensors'
    data = file.read_bytes()
    file.write_bytes(data[:-9] + bytes([data[-9]^1]) + data[-8:])
    with pytest.raises(ValueError, match=f'{name}/model.safetensors is damaged: its numbers are not those'): SDNVAE.from_pretrained(tmp_path/name)
