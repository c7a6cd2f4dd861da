"A layer leaves PyTorch's Python: as an exported program for maps of every size, and as ONNX, which another runtime computes."
import io
import pytest, torch
from torch import nn
from torch.export import Dim
from torch.testing import assert_close
from sdn_nb.layers import ResSDN, SDNLayer
from sdn_nb.scan import scan

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def dynamic(*least): return {0: Dim('batch', min=least[0]), 2: Dim('height', min=least[1]), 3: Dim('width', min=least[2])}

@pytest.mark.parametrize('kind', [SDNLayer,ResSDN])
@pytest.mark.parametrize('strict', [False,True], ids=['','strict'])
def test_exported_once_for_every_size(kind, strict):
    "From one image, one row, one column on; by the backend that runs everywhere, and saved and read as any program"
    layer = kind(3, 4, n_features=5)
    program = torch.export.export(layer, (torch.randn(2,3,20,30),), dynamic_shapes=(dynamic(1,1,1),), strict=strict)
    calls = [n for n in program.graph.nodes if 'sdn_nb.scan' in str(n.target)]
    assert len(calls)==4 and all('torch' in n.args for n in calls)
    file = io.BytesIO()
    torch.export.save(program, file); file.seek(0)
    for module in (program.module(), torch.export.load(file).module()):
        for size in ((2,20,30),(1,1,1),(1,1,7),(3,7,1),(5,2,2),(1,64,48),(4,3,100)):
            x = torch.randn(size[0],3,*size[1:])
            assert_close(module(x), layer(x), rtol=1e-4, atol=1e-5)

def test_exported_programs_learn():
    layer,x = SDNLayer(3, 4, n_features=5).double(),torch.randn(2,3,9,8).double()
    module = torch.export.export(layer, (torch.randn(2,3,20,30).double(),), dynamic_shapes=(dynamic(1,1,1),)).module()
    grads = {n: p.grad for m in (layer,module) for n,p in m.named_parameters() if m(x).square().sum().backward() is None}
    module.zero_grad(); layer.zero_grad()
    for m in (layer,module): m(x).square().sum().backward()
    theirs = dict(module.named_parameters())
    for n,p in layer.named_parameters(): assert_close(theirs[n].grad, p.grad)

def test_a_backend_that_was_named_is_exported():
    class Sweep(nn.Module):
        def __init__(self): super().__init__(); self.cell = nn.GRUCell(9, 3)
        def forward(self, x): return scan(x, *self.cell.parameters(), backend='triton_lines' if x.is_cuda else 'torch')
    program = torch.export.export(Sweep(), (torch.randn(2,3,9,8),))
    assert any('torch' in n.args for n in program.graph.nodes if 'sdn_nb.scan' in str(n.target))

# ONNX

onnxruntime = pytest.importorskip('onnxruntime', reason='no onnxruntime: pip install onnx onnxscript onnxruntime')
pytest.importorskip('onnxscript', reason='no onnxscript: pip install onnx onnxscript onnxruntime')

def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])

@pytest.mark.parametrize('kind,kw', [(ResSDN,dict(kernel_size=4, stride=2, upsample=True))], ids=['double'])
def test_onnx_for_every_size(kind, kw, tmp_path):
    "One file for any number, height and width, from one on; a loop in it for each sweep"
    import onnx
    layer,path = kind(3, 4, n_features=5, **kw).eval(),tmp_path/'layer.onnx'
    torch.onnx.export(layer, (torch.randn(2,3,8,6),), path, dynamic_shapes=(dynamic(1,1,1),), verbose=False)
    assert [n.op_type for n in onnx.load(path).graph.node].count('Scan')==4
    for size in ((2,3,8,6),(1,3,1,1),(1,3,1,7),(5,3,7,1),(2,3,30,20)):
        x = torch.randn(size)
        assert_close(run(path, x), layer(x).detach(), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('direction', ['left','down'])
def test_onnx_of_one_size(direction, tmp_path):
    layer,x = SDNLayer(2, 2, n_features=3, directions=direction).eval(),torch.randn(1,2,5,4)
    torch.onnx.export(layer, (x,), tmp_path/'layer.onnx', verbose=False)
    assert_close(run(tmp_path/'layer.onnx', x), layer(x).detach(), rtol=1e-4, atol=1e-5)

def test_onnx_by_tracing(tmp_path):
    "The older exporter of PyTorch, too"
    layer,x = ResSDN(3, 4, n_features=5).eval(),torch.randn(2,3,8,6)
    torch.onnx.export(layer, (x,), tmp_path/'layer.onnx', dynamo=False)
    assert_close(run(tmp_path/'layer.onnx', x), layer(x).detach(), rtol=1e-4, atol=1e-5)

def test_onnx_takes_no_named_backend(tmp_path):
    class Sweep(nn.Module):
        def __init__(self): super().__init__(); self.cell = nn.GRUCell(9, 3)
        def forward(self, x): return scan(x, *self.cell.parameters(), backend='torch')
    with pytest.raises(Exception) as told: torch.onnx.export(Sweep(), (torch.randn(2,3,9,8),), tmp_path/'sweep.onnx', verbose=False)
    assert 'Leave `backend` out' in ''.join(str(e) for e in (told.value, told.value.__cause__))
