"""The folder as a source: keys, ignore rules, links, a missing root, unfinished files."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import gitmatch
import pytest

from shared.errors import PermanentError, TransientError, UnreadableError
from worker.source.file_system import being_written, file_system, is_remote
from worker.source.folder import FolderSource
from worker.source.ignore import RULES
from worker.source.paths import encode

ROOT = os.getuid() == 0
LINUX = sys.platform == "linux"


def keys(source: FolderSource, below: set[str] | None = None) -> list[str]:
    return sorted(file.key for file in source.discover(below).files)


def fill(root: Path, *names: str) -> FolderSource:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return FolderSource(root)


def as_nobody(folder: Path, code: str) -> str:
    """Run code as an unprivileged user in this folder, with `source`. Return its output."""
    folder.chmod(0o755)
    code = (
        "import os; from pathlib import Path; from worker.source.file_system import being_written\n"
        "from worker.source.folder import FolderSource; source = FolderSource(Path('.'))\n"
        f"os.chdir({str(folder)!r}); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- keys ---


@pytest.mark.skipif(not LINUX, reason="macOS refuses names that are not UTF-8")
def test_keys_are_relative_and_can_be_converted_back(tmp_path: Path) -> None:
    names = [b"a b.md", b"new\nline.md", "ünï 🦩.md".encode(), b"caf\xe9.md", b"100%.md", b"%C9.md", b"sub\xff/c.md"]
    for name in names:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    source = FolderSource(tmp_path)
    found = keys(source)
    assert {"caf%E9.md", "sub%FF/c.md"} < set(found)
    assert all(key.encode() for key in found), "valid Unicode"
    assert sorted(source.path(key).read_bytes() for key in found) == sorted(names)
    assert [encode(os.path.relpath(source.path(key), tmp_path)) for key in found] == found
    assert keys(source, set(found)) == found
    assert not any(source.rules.ignores(key) for key in found)


def test_names_are_not_normalised(tmp_path: Path) -> None:
    both = [unicodedata.normalize(form, "ü.md") for form in ("NFC", "NFD")]
    source = fill(tmp_path, *both, "A.md", "a.md")
    assert keys(source) == sorted(os.listdir(tmp_path)), "one or two, as the file system says"
    assert all(source.hash(key) == hashlib.sha256(b"x").digest() for key in keys(source))


# --- ignore rules ---

DEFAULTS = """
.hidden .git/y.md .DS_Store ._a.md .~lock.a.odt# .a.md.swp a.swp .#a.md #a.md# a.md~ ~$open.docx a.tmp ~WRL0001.tmp
a.md.tmp.123.456 4913 a.md.sb-1a2b3c4d-AbCdEf a.md___jb_tmp___ c.part c.crdownload c.pdf.download/c.pdf
node_modules/x.md __MACOSX/x.md Thumbs.db THUMBS.DB $RECYCLE.BIN/x.md @eaDir/x.md .Trash-1000/files/x.md
sub/node_modules/deep/x.md
""".split()


def test_default_ignore_rules_and_links(tmp_path: Path) -> None:
    kept = ["4913.md", "good.md", "part", "sub/good.md", "tmp.md"]
    source = fill(tmp_path / "in", *DEFAULTS, *kept)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.md").write_text("secret")
    (tmp_path / "in" / "link.md").symlink_to(tmp_path / "outside" / "x.md")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "in" / "pipe.md")
    assert keys(source) == kept
    assert all(source.rules.ignores(key) for key in DEFAULTS)
    assert not any(source.rules.ignores(key) for key in (*kept, "", "gone.md"))
    assert keys(source, {"node_modules/x.md", ".git", "good.md", "gone.md", "link.md", "pipe.md", "folder/x.md"}) == [
        "good.md"
    ]
    for key in ("link.md", "folder/x.md", "pipe.md"):
        with pytest.raises(UnreadableError, match="not followed"), source.fetch(key):
            pass
    for key in ("link.md", "pipe.md"):
        with pytest.raises(UnreadableError, match="not followed"):
            source.hash(key)


NAMES = """
a.md b.txt A.MD foo doc/a.md doc/foo/b.md doc/foo/x/y/z.md doc/frotz/a.md build/o.md src/build/o.md src/build/keep.md
#hash.md !bang.md a[1].md a1.md ab.md a-b.md a]b.md ü.md 日本/語.md x/y/z/w.md x/z.md x/yy/z.md back\\slash.md log/1.log
log/debug/2.log log/keep.log deep/a/b/c/d.md deep/a/d.md a/b a/x/b a/x/y/b q?.md st*r.md {a,b}.md abc/def/ghi.md
dir.d/in.md keep/foo/bar.md
""".split()

CASES: list[dict[str, str]] = [
    {"": rules}
    for rules in (
        "*.md",
        "*.md\n!a.md",
        "/a.md",
        "a.md",
        "doc/",
        "doc",
        "/doc/foo",
        "doc/foo/",
        "foo/",
        "**/foo",
        "**/foo/b.md",
        "doc/**",
        "doc/**/z.md",
        "a/**/b",
        "**/build/**",
        "build/",
        "/build/",
        "\\#hash.md",
        "#hash.md",
        "\\!bang.md",
        "!bang.md",
        "sp\\ ace.md",
        "sp ace.md",
        "trail ",
        "trail\\ ",
        "a[1].md",
        "a\\[1\\].md",
        "a[0-9].md",
        "a[!0-9].md",
        "a[^0-9].md",
        "a[]-]b.md",
        "a[1.md",
        "a[[:digit:]].md",
        "[[:alpha:]][[:alpha:]].md",
        "a[\\]]b.md",
        "ü.md",
        "日本",
        "日*/語.md",
        "x/**/z.md",
        "x/*/z.md",
        "x/**",
        "**",
        "*",
        "*\n!*.md",
        "*\n!*/\n!*.md",
        "/*\n!/doc\n/doc/*\n!/doc/foo",
        "log/\n!log/keep.log",
        "log/*\n!log/keep.log",
        "log/**\n!log/keep.log",
        "back\\\\slash.md",
        "q\\?.md",
        "q?.md",
        "st\\*r.md",
        "{a,b}.md",
        "/",
        "//",
        "doc//foo",
        "/**",
        "/**/z.md",
        "**/",
        "*/",
        "a**b",
        "deep/**/**/d.md",
        "!",
        "\\",
        "a.md\\",
        "  a.md",
        "\ta.md",
        "A.md",
        "*.MD",
        "*.md\r\nfoo\r\n",
        "\ufeffa.md\n",
        "# c\n\n   \na.md",
        "a.md\n!a.md\na.md",
        "dir.d",
        "*.d/",
        "abc/*/ghi.md",
        "abc/d*",
        "[a-",
        "[[:foo:]].md",
        "foo\\/b",
        "doc/\\foo",
        "[#!]*.md",
        "doc/**/",
        "a/*",
        "**/*.log",
        "log/**/*.log\n!log/debug/",
    )
] + [
    {"": "*.md", "doc": "!*.md"},
    {"": "*.md", "doc": "!a.md"},
    {"": "doc/foo", "doc": "!foo"},
    {"": "doc/", "doc": "!a.md"},
    {"doc": "/a.md"},
    {"doc": "a.md"},
    {"doc": "foo/b.md"},
    {"doc": "*\n!foo"},
    {"doc": "*\n!foo/", "doc/foo": "!b.md"},
    {"": "!a.md", "doc": "a.md"},
    {"": "*.log", "log": "!*.log", "log/debug": "2.log"},
    {"src": "/build/*\n!keep.md"},
]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.skipif(not LINUX, reason="names that differ in case only")
def test_ignore_rules_behave_like_those_of_git(tmp_path: Path) -> None:
    for setup in ("init -q", "config core.excludesFile /dev/null"):
        subprocess.run(["git", *setup.split()], cwd=tmp_path, check=True)
    source = fill(tmp_path, *(name for name in NAMES if name != "a"), "sp ace.md", "trail ")
    entries = [os.path.relpath(e, tmp_path) for e in tmp_path.rglob("*") if ".git" not in e.parts]
    wrong: list[tuple[object, ...]] = []
    for case in CASES:
        files = [(tmp_path / folder / name) for folder in case for name in (RULES, ".gitignore")]
        for path in files:
            path.write_text(case[os.path.relpath(path.parent, tmp_path).removeprefix(".")], newline="")
        command = ["git", "check-ignore", "--no-index", "-z", "--stdin"]
        done = subprocess.run(
            command, cwd=tmp_path, input="\0".join(entries), capture_output=True, text=True, check=False
        )
        git = {name for name in done.stdout.split("\0") if name}
        wrong += [(case, e, e in git) for e in entries if source.rules.ignores(e) != (e in git)]
        seen, files_left = set(keys(source)), {e for e in entries if e not in git and (tmp_path / e).is_file()}
        wrong += [(case, e, "seen") for e in seen ^ files_left]
        for path in files:
            path.unlink()
    assert wrong == []
    assert len(CASES) * len(entries) > 60 * 60


def test_rules_override_the_defaults_but_never_include_git_folders(tmp_path: Path) -> None:
    source = fill(tmp_path, ".notes.md", ".other.md", ".git/config.md", "sub/.deep.md", "node_modules/x.md", "a.tmp")
    (tmp_path / RULES).write_text("!.notes.md\n!*.tmp\n!.git\n!.askfolderignore\n!node_modules/\nnode_modules/y.md")
    (tmp_path / "sub" / RULES).write_text("!.*")
    assert keys(source) == [".notes.md", "a.tmp", "node_modules/x.md", "sub/.deep.md"]
    (tmp_path / "sub" / RULES).write_text("*")
    (tmp_path / RULES).unlink()
    assert keys(source) == [], "changed rules hold at once"
    assert source.rules.ignores("sub/new.md")


def test_rules_match_both_unicode_forms_of_an_accent(tmp_path: Path) -> None:
    source = fill(tmp_path, *(unicodedata.normalize(form, "ü/ü.md") for form in ("NFC", "NFD")))
    (tmp_path / RULES).write_text(unicodedata.normalize("NFD", "/ü/ü.md"))
    assert keys(source) == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_rules_in_the_format_of_windows(tmp_path: Path, encoding: str) -> None:
    source = fill(tmp_path, "private/a.md", "b.md")
    (tmp_path / RULES).write_bytes("private/\r\n".encode(encoding))
    assert keys(source) == ["b.md"]


def test_an_invalid_rule_is_reported_once_and_the_others_apply(tmp_path: Path) -> None:
    fill(tmp_path, "a.md", "b.md", "caf\udce9.md" if LINUX else "c.md")
    (tmp_path / RULES).write_bytes(b"[a-\na.md\ncaf\xe9.md\nc.md\n")
    code = """
import os, sys; from pathlib import Path; from worker.source.folder import FolderSource
source = FolderSource(Path(sys.argv[1]))
for second in (1, 2):
    os.utime(source.root / ".askfolderignore", (second, second)); print([file.key for file in source.discover().files])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "['b.md']\n" * 2
    assert done.stderr.count("rules.wrong") == 1
    assert "line 1" in done.stderr


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_a_folder_with_unreadable_rules_is_not_read(tmp_path: Path) -> None:
    fill(tmp_path, "private/a.md", "b.md")
    (tmp_path / "private" / RULES).write_text("a.md")
    (tmp_path / "private" / RULES).chmod(0)
    show = "seen = source.discover({}); print([f.key for f in seen.files], seen.closed)"
    assert as_nobody(tmp_path, show.format("")) == "['b.md'] ['private']\n"
    assert as_nobody(tmp_path, show.format("['private/a.md']")) == "[] ['private/a.md']\n"
    (tmp_path / RULES).write_text("b.md")
    (tmp_path / RULES).chmod(0)
    output = as_nobody(tmp_path, "try: source.discover()\nexcept Exception as e: print(type(e).__name__, e)")
    assert output.startswith("PermanentError")
    assert "nothing is changed" in output


# --- listing ---


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_unreadable_folders_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "closed/a.md", "listed/b.md", "open/c.md", "e.md")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "listed").chmod(0o744)  # the names can be read, but not the file attributes
    code = "seen = source.discover(); print(sorted(f.key for f in seen.files), sorted(seen.closed), seen.folders)"
    assert as_nobody(tmp_path, code) == "['e.md', 'open/c.md'] ['closed', 'listed'] 2\n"


def test_listing(tmp_path: Path) -> None:
    source = fill(tmp_path, "a.md", "sub/b.md", "sub/deep/c.md", ".hidden/d.md")
    seen = source.discover()
    assert (seen.closed, seen.folders) == ([], 3)
    status = os.stat(tmp_path / "a.md")
    file = next(file for file in seen.files if file.key == "a.md")
    assert (file.revision, file.size, file.modified) == (f"{status.st_mtime_ns}-1", 1, status.st_mtime)
    assert [f.key for f in source.discover(["sub/deep", "sub/deep/c.md", "sub/deep"]).files] == ["sub/deep/c.md"], (
        "once"
    )


def test_a_missing_root_changes_nothing(tmp_path: Path) -> None:
    for root in (tmp_path / "away", fill(tmp_path, "file").path("file")):
        with pytest.raises(PermanentError, match="nothing is changed"):
            FolderSource(root).discover()


@pytest.mark.parametrize("back", [False, True])
def test_a_root_replaced_during_the_listing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    source = fill(tmp_path / "in", *(f"{n}/a.md" for n in range(20)))
    scandir, calls = os.scandir, iter(range(100))

    def leave(path: object) -> object:
        if next(calls) == 10:
            (tmp_path / "in").rename(tmp_path / "elsewhere")
            if back:
                (tmp_path / "in").mkdir()  # an unmounted disk leaves an empty folder
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", leave)
    with pytest.raises(PermanentError, match="nothing is changed"):
        source.discover()


def test_a_change_while_reading_is_noticed(tmp_path: Path) -> None:
    source = fill(tmp_path, "a.md")
    path = tmp_path / "a.md"
    with pytest.raises(TransientError, match="changed while"), source.fetch("a.md"):
        path.write_text("two!")
    with pytest.raises(TransientError, match="no longer exists"), source.fetch("a.md"):
        path.unlink()
    with pytest.raises(TransientError, match="no longer exists"), source.fetch("a.md"):
        pass


def test_root_may_be_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "real", "sub/a.md")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    source = FolderSource(tmp_path / "link")
    assert keys(source) == keys(source, {""}) == keys(source, {"sub"}) == ["sub/a.md"]


@pytest.mark.skipif(not (LINUX and ROOT and shutil.which("unshare")), reason="mounting needs root and `unshare`")
def test_mounts_are_recognised(tmp_path: Path) -> None:
    code = f"""
import subprocess; from pathlib import Path; from worker.source.file_system import file_system
from worker.source.folder import FolderSource
root = Path({str(tmp_path)!r}); below = root / "disk"; below.mkdir(); (root / "link").symlink_to(below)
before = FolderSource(below).identity()
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True); (below / "a.md").write_text("x")
after, link = FolderSource(below).identity(), FolderSource(root / "link").identity()
print(after != before, link != before, file_system(below / "a.md"))
print([file.key for file in FolderSource(root).discover().files])
"""
    done = subprocess.run(["unshare", "-m", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.split("\n")[:2] == ["True True tmpfs", "['disk/a.md']"], done.stderr


def test_remote_file_systems_are_recognised() -> None:
    assert all(map(is_remote, ("nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs")))
    assert not any(map(is_remote, ("ext4", "apfs", "fuseblk", "overlay", "")))
    assert file_system(Path("/")) != ""


# --- files being written ---

WRITER = """
import sys, time
file = open(sys.argv[1], sys.argv[2]); print("open", flush=True); sys.stdin.readline()
file.close(); print("closed", flush=True); sys.stdin.readline()
"""


@pytest.mark.skipif(not LINUX, reason="only Linux has leases")
@pytest.mark.parametrize(("mode", "expected"), [("ab", True), ("r+b", True), ("rb", False)])
def test_a_file_open_for_writing_is_detected(tmp_path: Path, mode: str, expected: bool) -> None:
    source = fill(tmp_path, "a.md")
    assert being_written(source.path("a.md")) is False
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "a.md"), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin
        assert writer.stdout
        assert writer.stdout.readline() == b"open\n"
        assert being_written(source.path("a.md")) is expected
        (tmp_path / "a.md").rename(tmp_path / "b.md")
        assert being_written(source.path("b.md")) is expected
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == b"closed\n"
        assert being_written(source.path("b.md")) is False
        writer.stdin.close()


@pytest.mark.skipif(not LINUX, reason="only Linux has leases")
def test_a_slow_copy_is_detected(tmp_path: Path) -> None:
    source = fill(tmp_path)
    copy = subprocess.Popen(["sh", "-c", f"(echo one; sleep 0.4; echo two) > '{tmp_path}/a.md'"])
    seen = []
    while copy.poll() is None:
        if (tmp_path / "a.md").exists():
            seen.append(being_written(source.path("a.md")))
        time.sleep(0.02)
    assert len(seen) > 5
    assert set(seen[:-1]) == {True}
    assert being_written(source.path("a.md")) is False


def test_no_writer_is_reported_if_unknown(tmp_path: Path) -> None:
    source = fill(tmp_path, "a.md")
    (tmp_path / "link.md").symlink_to("a.md")
    os.mkfifo(tmp_path / "pipe.md")
    assert [being_written(source.path(key)) for key in ("gone.md", "link.md", "pipe.md", "")] == [None] * 4
    if ROOT and LINUX:
        assert as_nobody(tmp_path, "print(being_written(source.path('a.md')))") == "None\n", "not its owner"


STORM = """
import sys, threading, time
from pathlib import Path
from worker.source.file_system import being_written
from worker.source.folder import FolderSource
source, end, seen = FolderSource(Path(sys.argv[1])), time.monotonic() + 1.0, set()
# keep the GIL busy
threading.Thread(target=lambda: [None for _ in iter(lambda: time.monotonic() < end, False)], daemon=True).start()
while (now := time.monotonic()) < end or (len(seen) < 2 and now < end + 30):
    seen.add(being_written(source.path("a.md")))
print(sorted(seen))
"""


@pytest.mark.skipif(not LINUX, reason="only Linux has leases")
def test_a_concurrent_writer_does_not_wait(tmp_path: Path) -> None:
    fill(tmp_path, "a.md")
    with subprocess.Popen([sys.executable, "-c", STORM, str(tmp_path)], stdout=subprocess.PIPE, text=True) as asking:
        opened = 0
        while asking.poll() is None:
            os.close(os.open(tmp_path / "a.md", os.O_WRONLY))
            opened += 1
            time.sleep(0.0005)
        assert asking.stdout
        assert asking.stdout.read() == "[False, True]\n"
    assert asking.returncode == 0, "SIGIO would have ended it"
    assert opened > 50, "the kernel makes a writer wait for 45 s if a lease is not returned"


def test_rules_of_many_folders_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path, *(f"{n % 50}/{n}.md" for n in range(2000)))
    (tmp_path / RULES).write_text("/build/\ndocs/**/drafts/*.md\n!docs/keep.md\n*.log\n" * 5)
    (tmp_path / "7" / RULES).write_text("8.md")
    compiled: list[object] = []
    looked: list[object] = []
    compile_pattern, stat = gitmatch.pattern2regex, os.stat

    def counted_compile(line: Any, **kwargs: Any) -> Any:
        compiled.append(line)
        return compile_pattern(line, **kwargs)

    def counted_stat(path: Any, **kwargs: Any) -> os.stat_result:
        looked.append(path)
        return stat(path, **kwargs)

    monkeypatch.setattr(gitmatch, "pattern2regex", counted_compile)
    monkeypatch.setattr(os, "stat", counted_stat)
    for _ in range(3):
        assert len(source.discover().files) == 2000
    assert len(compiled) == 22, "20 patterns, the empty last line, and the pattern of 7/"
    assert len(looked) == 3 * (51 + 3), "the rules of each folder once, the root three times"
