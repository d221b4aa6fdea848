"""The package's metadata, read from settings.ini (the tools' own settings stand in pyproject.toml)."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
scope = {}
exec((here/cfg['lib_name']/'__init__.py').read_text(encoding='utf-8'), scope)

def lines(key): return [o.strip() for o in cfg[key].splitlines() if o.strip()]

setup(
    name=cfg['lib_name'],
    version=scope['__version__'],
    description=cfg['description'],
    keywords=cfg['keywords'],
    author=cfg['author'],
    license=cfg['license'].upper(),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]),
    package_data={cfg['lib_name']: ['**/*.json', '**/*.j2', '**/*.css']},
    install_requires=lines('requirements'),
    extras_require={k.removesuffix('_requirements'): lines(k) for k in cfg if k.endswith('_requirements')},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown',
)
