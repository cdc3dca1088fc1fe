"""What a process did to the files below one folder and told its clients, in one total order, read by strace.

strace stops a thread where it enters a system call and where it leaves it, and writes a line for either. An effect
can be on the disk from the first line on; it is there for sure, for a later fsync to make durable, from the second.
What a client was told counts from the first. So the order of the lines is the order a power cut sees.
A call that changes a file in a way not known here is an error, never silence.
"""

import binascii
import os
import re
import shutil
import subprocess

from helpers import wait_for

CALLS = ("openat,open,creat,close,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,rename,renameat,"
         "renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,fsync,fdatasync,msync,"
         "sync_file_range,sync,syncfs,sendfile,splice,copy_file_range,mmap")


VKEY = re.compile(rb"scribe/[0-9a-f]{32}\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+")
NODE_VKEY = re.compile(rb"scribe/[0-9a-f]{32}/node-1\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+")
SEQ = re.compile(rb'"seq":(\d+)[,}]')
HEAD = re.compile(rb"scribe/[0-9a-f]{32}(?:\n|\\n)(\d+)(?:\n|\\n)")


class Unmodelled(Exception):
    """The process changed a file in a way this program cannot replay."""


def missing():
    """Why strace cannot be used here, or None."""
    if not shutil.which("strace"):
        return "strace is not installed (apt-get install -y strace)"
    done = subprocess.run(["strace", "-f", "-e", "trace=none", "true"], capture_output=True)
    return None if done.returncode == 0 else f"strace is not permitted here: {done.stderr.decode().strip()[:200]}"


def prefix(out):
    """The command before a program's own that writes its trace to the file out; the program is the process started."""
    return ["strace", "-D", "-f", "-y", "-xx", "-s", "1000000000", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", out]


def wait_whole(out, pid):
    """Wait until strace has written that the process ended."""
    ended = re.compile(rb"^%d +\+\+\+ " % pid, re.M)

    def found():
        with open(out, "rb") as f:
            f.seek(max(0, os.path.getsize(out) - 100_000))
            return ended.search(f.read())
    wait_for(f"the end of {out}", found, 30)


class Call:
    """One system call: the numbers of its two lines (left is None if it never came back), arguments, result."""

    def __init__(self, name, args, entered, left, result):
        self.name, self.args, self.entered, self.left, self.result = name, args, entered, left, result

    def texts(self):
        """The decoded strings among the arguments."""
        pieces = self.args.split(b'"')
        return [binascii.unhexlify(text.replace(b"\\x", b"")) for text in pieces[1::2]]

    def fd(self):
        """The number of the descriptor that is the first argument, and what strace says it stands for."""
        found = re.match(rb"(-?\d+)(?:<([^>]*)>)?", self.args)
        return int(found[1]), unescape(found[2] or b"")

    def path(self, which=0):
        """The absolute path that the which-th string is; relative ones stand under the folder before it."""
        name = self.texts()[which].decode()
        if name.startswith("/") or not self.name.endswith("at"):
            return name
        folder = re.findall(rb"(?:AT_FDCWD|\d+)<([^>]*)>", self.args)[which]
        return os.path.join(unescape(folder), name)

    def number(self, which):
        """A plain number among the arguments, the data not counted."""
        return int(re.sub(rb'"[^"]*"', b"", self.args).split(b", ")[which])


def unescape(text):
    """The name strace printed after a descriptor; -xx escapes those of files."""
    return (binascii.unhexlify(text.replace(b"\\x", b"")) if text.startswith(b"\\x") else text).decode()


def read_calls(out):
    """All calls in the file that succeeded, or never came back."""
    open_calls, calls = {}, []
    with open(out, "rb") as f:
        for number, line in enumerate(f):
            pid, _, rest = line.partition(b" ")
            rest = rest.strip()
            if rest.startswith((b"---", b"+++")):
                continue
            if rest.startswith(b"<... "):
                entered, start = open_calls.pop(pid)
                rest = start + rest.partition(b" resumed>")[2]
            else:
                entered = number
            if rest.endswith(b"<unfinished ...>"):
                open_calls[pid] = entered, rest.removesuffix(b"<unfinished ...>")
                continue
            name, _, rest = rest.partition(b"(")
            args, _, result = rest.rpartition(b" = ")
            value = re.match(rb"-?\d+|0x[0-9a-f]+", result)
            if value and not result.startswith(b"-"):
                calls.append(Call(name.decode(), args.rstrip().removesuffix(b")"), entered, number, int(value[0], 0)))
    for entered, start in open_calls.values():
        name, _, args = start.partition(b"(")
        calls.append(Call(name.decode(), args, entered, None, None))
    return calls


class Promise:
    """What clients were told up to a moment: it must outlive a power cut."""

    def __init__(self):
        self.least, self.signed = 0, 0                # entries there are, entries a signed head covers
        self.vkeys, self.node_vkey = [], None         # ledger keys in the order they were shown
        self.tails = {}

    def hear(self, sent):
        """Take bytes that went into a socket."""
        socket, data = sent
        text = self.tails.get(socket, b"") + data
        self.tails[socket] = text[-300:]
        for found in SEQ.findall(text):
            self.least = max(self.least, int(found) + 1)
        for found in HEAD.findall(text):
            self.signed = max(self.signed, int(found))
        self.least = max(self.least, self.signed)
        for found in VKEY.findall(text):
            if found.decode() not in self.vkeys:
                self.vkeys.append(found.decode())
        for found in NODE_VKEY.findall(text):
            self.node_vkey = found.decode()


class Op:
    """One change of the disk, which a power cut can lose until a Sync covers it.

    kind is write (data at offset) or size of a file; or file, folder (a new name), move (to another), drop (of a name).
    """

    def __init__(self, kind, inode, step, path, offset=0, data=b"", size=0, to=None):
        self.kind, self.inode, self.path = kind, inode, path
        self.number, self.step = step
        self.offset, self.data, self.size, self.to = offset, data, size, to

    def offsets(self):
        """Of the pieces of this in an image: all of it."""
        return None


class Sync:
    """A successful fsync of a file or of a folder."""

    def __init__(self, inode, step, path):
        self.inode, self.path = inode, path
        self.number, self.step = step


class Trace:
    """What happened below root, over several lives of a process.

    events is a list of (what, thing): enter and leave of an Op or a Sync, and sent, bytes that went into a socket.
    files is what was there before, durably: {path: bytes}, None for a folder.
    """

    def __init__(self, root, files=None):
        self.root, self.files, self.events = root, files or {root: None}, []
        self.names = {path: inode for inode, path in enumerate(self.files)}  # as the process sees them
        self.folders = {path for path, data in self.files.items() if data is None}
        self.promise = Promise()  # of before
        self.inodes = len(self.names)
        self.steps = 0

    def add(self, out):
        """Append the events of one life, as strace told them in the file out."""
        self.opened, self.places = {}, {}  # of each descriptor: (inode, path), and where write goes on
        lines = []
        for call in read_calls(out):
            lines.append((call.entered, False, call))
            if call.left is not None:
                lines.append((call.left, True, call))
        done = {}
        for _, leaves, call in sorted(lines, key=lambda line: line[:2]):
            if leaves:
                self.leave(call)
                self.events += [("leave", thing) for thing in done.pop(call)]
            else:
                done[call] = list(self.enter(call))
                self.events += [("enter", thing) for thing in done[call]]
        # What a dead process had begun is in the page cache: a later fsync makes it durable.
        self.events += [("leave", thing) for things in done.values() for thing in things if isinstance(thing, Op)]

    def inside(self, path):
        return path == self.root or path.startswith(self.root + "/")

    def enter(self, call):
        """The Ops and Syncs that the call begins."""
        handler = HANDLERS.get(call.name)
        if handler:
            yield from handler(self, call)
        elif call.name == "mmap" and not (b"PROT_WRITE" in call.args and b"MAP_SHARED" in call.args):
            return
        elif binascii.hexlify(self.root.encode()) in call.args.replace(b"\\x", b""):
            raise Unmodelled(f"{call.name}({call.args[:300]!r})")

    def leave(self, call):
        """Keep what a call that returned says of descriptors."""
        if call.name == "openat":
            path = call.path()
            self.opened[call.result] = (self.names.get(path), path) if self.inside(path) else (None, path)
            self.places[call.result] = 0
        elif call.name == "lseek":
            self.places[call.fd()[0]] = call.result

    def file(self, call):
        """Inode and path behind the call's descriptor; None and its label when that is not below root."""
        number, label = call.fd()
        if not label.startswith("/"):
            return None, label
        if number not in self.opened and self.inside(label):
            raise Unmodelled(f"{call.name} of {label}, which was not seen to be opened")
        return self.opened.get(number, (None, label))

    def step(self, call, path):
        """The number and the name of what is done to path."""
        self.steps += 1
        return self.steps, f"step {self.steps}: {call.name} {os.path.relpath(path, self.root)}"

    def new(self, kind, call, path):
        """A new name with a new inode behind it."""
        inode, self.inodes = self.inodes, self.inodes + 1
        self.names[path] = inode
        return Op(kind, inode, self.step(call, path), path)

    def on_openat(self, call):
        path, flags = call.path(), call.args
        if not self.inside(path):
            return
        if b"O_DIRECT|" in flags or b"SYNC" in flags or b"O_APPEND" in flags or b"O_TMPFILE" in flags:
            raise Unmodelled(f"{call.name} of {path} with {flags[-100:]!r}")
        if b"O_CREAT" in flags and path not in self.names:
            yield self.new("file", call, path)
        elif b"O_TRUNC" in flags:
            yield Op("size", self.names[path], self.step(call, path), path)

    def on_mkdirat(self, call):
        path = call.path()
        if self.inside(path):
            self.folders.add(path)
            yield self.new("folder", call, path)

    def on_write(self, call):
        inode, path = self.file(call)
        data = b"".join(call.texts())
        if path.startswith("socket:"):
            self.events.append(("sent", (path, data)))
        if inode is None:
            return
        if call.result is not None:
            data = data[:call.result]
        if call.name == "pwrite64":
            place = call.number(3)
        else:
            number = call.fd()[0]
            place, self.places[number] = self.places[number], self.places[number] + len(data)
        yield Op("write", inode, self.step(call, path), path, offset=place, data=data)

    def on_ftruncate(self, call):
        inode, path = self.file(call)
        if inode is not None:
            yield Op("size", inode, self.step(call, path), path, size=call.number(1))

    def on_renameat(self, call):
        path, to = call.path(0), call.path(1)
        if not self.inside(path):
            return
        if os.path.dirname(path) != os.path.dirname(to) or path in self.folders:
            raise Unmodelled(f"{call.name} of {path} to {to}")
        inode = self.names[to] = self.names.pop(path)
        yield Op("move", inode, self.step(call, to), path, to=to)

    def on_unlinkat(self, call):
        path = call.path()
        if self.inside(path):
            self.folders.discard(path)
            yield Op("drop", self.names.pop(path), self.step(call, path), path)

    def on_fsync(self, call):
        inode, path = self.file(call)
        if inode is not None:
            yield Sync(inode, self.step(call, path), path)


HANDLERS = {"openat": Trace.on_openat, "mkdirat": Trace.on_mkdirat, "write": Trace.on_write, "writev": Trace.on_write,
            "pwrite64": Trace.on_write, "ftruncate": Trace.on_ftruncate, "renameat": Trace.on_renameat,
            "unlinkat": Trace.on_unlinkat, "fsync": Trace.on_fsync, "fdatasync": Trace.on_fsync,
            "close": lambda trace, call: (), "lseek": lambda trace, call: ()}
