"Build the site into _docs/ without Quarto, and check it: `python tools/site.py`"
import os, re, shutil, sys, tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
import nbformat
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from smalldocs.cli import main as smalldocs

root = Path(__file__).resolve().parent.parent

def sources(folder):
    "The notebooks below `folder`, without those of hidden folders"
    return [p for p in sorted(Path(folder).rglob('[!_.]*.ipynb')) if not any(o[0]=='.' for o in p.parts)]

def title_faults(path):
    "What is wrong with the title's cell of the notebook at `path`, of which nbdev keeps only the title and a quoted line"
    text = next((c.source.strip() for c in nbformat.read(path, 4).cells if c.cell_type=='markdown'), '')
    title,*rest = [o for o in text.splitlines() if o.strip()]  or ['']
    if not title.startswith('# '): return [f'{path}: its first text is no title: {title[:60]!r}']
    if rest and rest[0].startswith('> '): rest = rest[1:]
    return [f"{path}: a site drops this line of the title's cell, so put it into the next: {o[:60]!r}" for o in rest]

def process():
    "Fill _proc/ with the notebooks as nbdev prepares them for a site, and return it"
    shutil.rmtree('_proc', ignore_errors=True)
    proc = proc_nbs('nbs')
    lost = {p.name for p in sources('nbs')} - {p.name for p in proc.rglob('*.ipynb')}
    if lost: sys.exit(f'nbdev did not process {sorted(lost)}')
    for p in proc.rglob('*.ipynb'): # a page would show the error of a renderer, and nothing else would tell
        for c in nbformat.read(p, 4).cells:
            if re.search(r'^show_doc\(', c.source, re.M) and not all('text/markdown' in o.get('data', {}) for o in c.outputs):
                sys.exit(f'{p}: no documentation came of: {c.source}')
    return proc

def stage(proc, dest):
    """Copy `proc` to `dest`/nbs as smalldocs wants it: each notebook, and the links to it, under the name of its page
    Returns that folder, and the path of each page's notebook, both without the ending"""
    shutil.copytree(proc, dest/'nbs')
    nbs = {p: nbformat.read(p, 4) for p in (dest/'nbs').rglob('*.ipynb')}
    page = re.compile(r'^output-file:\s*(\S+)\.html\n?', re.M) # nbdev's front matter: `scan.html` in 00_scan.ipynb
    names = {p: m[1] if (m := page.search(nb.cells[0].source)) else p.stem for p,nb in nbs.items()}
    def rename(text, before):
        for p,new in names.items(): text = re.sub(rf'({before}){re.escape(p.stem)}\.ipynb', rf'\g<1>{new}.ipynb', text)
        return text
    for p,nb in nbs.items():
        nb.cells[0].source = page.sub('', nb.cells[0].source)
        for c in nb.cells:
            if c.cell_type=='markdown': c.source = rename(c.source, r'(?:\]\(|href=")(?:[^)"\s]*/)?')
        nbformat.write(nb, p)
        p.rename(p.with_stem(names[p]))
    conf = rename((root/'_quarto.yml').read_text(encoding='utf-8'), r'href: (?:\S*/)?')
    (dest/'_quarto.yml').write_text(re.sub(r'\n +grid:.*', '', conf), encoding='utf-8') # widths for Quarto; smalldocs takes them from styles.css
    nbs_of = {p.with_stem(n).relative_to(dest/'nbs').with_suffix('').as_posix(): p.relative_to(dest/'nbs').with_suffix('').as_posix() for p,n in names.items()}
    return dest/'nbs', nbs_of

class Page(HTMLParser):
    "The ids and the links of one page"
    def __init__(self, path):
        super().__init__()
        self.ids,self.links = set(),[]
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        for k,v in attrs:
            if k=='id' or (tag=='a' and k=='name'): self.ids.add(v)
            if k in ('href','src') and v is not None: self.links.append(v)

def hang(code):
    "Put each line of highlighted `code` into a block of its own, which begins a line that had to be broken further in than the line itself"
    out,tags = [],[]
    for line in code.split('\n'):
        before = ''.join(tags)
        line = re.sub(r'(?<![\w-])--[\w-]+', r'<span class="nowrap">\g<0></span>', line) # an option breaks at no dash
        for tag in re.findall(r'<span[^>]*>|</span>', line):
            if tag[1]=='/': tags.pop()
            else: tags.append(tag)
        text = re.sub(r'<[^>]*>', '', line)
        indent = len(text)-len(text.lstrip())
        out.append(f'<span class="hang" style="--indent:{indent}">{before}{line}\n{"</span>"*len(tags)}</span>')
    return ''.join(out)

def localize(site, url, nbs_of):
    """Make the links that nbdev wrote to the published site at `url` relative to each page, those to a page's source those of its notebook
    (`nbs_of`: page to notebook), and the card's address the same for all; lines of code hang; a theme loads no font from elsewhere"""
    for css in (site/'site_libs/themes').glob('*.css'):
        css.write_text(re.sub(r'@import url\(https:[^)]*\);', '', css.read_text(encoding='utf-8')), encoding='utf-8')
    ids = {p.relative_to(site).as_posix(): Page(p).ids for p in site.rglob('*.html')}
    for page in ids:
        up = '../'*page.count('/')
        def near(m, up=up): # nbdev links methods and private names too, which have no heading of their own: take the class's, or the page
            to,anchor = m[1],m[2] or ''
            found = next((a for a in (anchor, anchor.split('.')[0]) if a in ids.get(to, ())), '')
            return f'href="{up}{to}' + (f'#{found}"' if found else '"')
        text = re.sub(rf'(?<=<a )href="{re.escape(url)}/([^"#]*)(?:#([^"]*))?"', near, (site/page).read_text(encoding='utf-8'))
        text = re.sub(r'(<code class="sourceCode[^>]*>)(.*?)(?=</code>)', lambda m: m[1]+hang(m[2]), text, flags=re.S)
        name = page.removesuffix('.html')
        text = re.sub(rf'(/(?:edit|blob)/[\w.-]+/nbs/){re.escape(name)}\.ipynb', rf'\g<1>{nbs_of[name]}.ipynb', text)
        text = re.sub(rf'{re.escape(url)}/(?:[\w-]+/)+images/card', f'{url}/images/card', text)
        (site/page).write_text(text, encoding='utf-8')

def bad_links(site):
    "A line for each link in `site` whose file or anchor is missing, or which starts from the host's root"
    pages,bad = {p.resolve(): Page(p) for p in site.rglob('*.html')},[]
    for path,page in pages.items():
        for link in page.links:
            if re.match(r'[a-zA-Z][\w+.-]*:|//', link): continue
            file,_,anchor = unquote(link).partition('#')
            file = file.partition('?')[0]
            to = (path.parent/file).resolve() if file else path
            if to.is_dir(): to = to/'index.html'
            if link.startswith('/'):   why = 'absolute'
            elif not to.is_file():     why = 'no such file'
            elif anchor and to in pages and anchor not in pages[to].ids: why = 'no such anchor'
            else: continue
            bad.append(f'{path.relative_to(site.resolve())}: {link}: {why}')
    return bad

if __name__ == '__main__':
    os.chdir(root)
    cfg,out = get_config(),root/'_docs'
    if faults := [o for p in sources('nbs') for o in title_faults(p)]: sys.exit('\n'.join(faults))
    with tempfile.TemporaryDirectory() as tmp:
        src,nbs_of = stage(process(), Path(tmp))
        if smalldocs(['render', '--strict', '--quiet', str(src)]) or smalldocs(['check', str(src)]): sys.exit('smalldocs found faults')
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(src/'_docs', out)
    localize(out, cfg.doc_host+cfg.doc_baseurl, nbs_of)
    if bad := bad_links(out): sys.exit('\n'.join(bad))
    print(f'{len(list(out.rglob("*.html")))} pages in {out.name}/, every link within them sound')
