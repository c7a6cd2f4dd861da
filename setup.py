"Everything about the package is in settings.ini; this file hands it to setuptools"
import configparser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
ini = configparser.ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_path']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host']+cfg['doc_baseurl']},
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    license_expression='Apache-2.0', license_files=['LICENSE'],
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3'],
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: cfg['package_data'].split()}, zip_safe=False,
    install_requires=cfg['requirements'].split(), extras_require={'h5': ['h5py']} | {k: cfg[f'{k}_requirements'].split() for k in ('dev','explore','distributed','logging','hub','compress')},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={lib}._modidx:d"],
    },
)
