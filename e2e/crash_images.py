"""The disks a power cut can leave, after ALICE (OSDI 2014): what was synced is there, of the rest any part.

Disk replays a crash_trace.Trace and knows at each moment what is durable and what is pending. KINDS are the ways to
choose among what is pending. Assumed of the disk: a sector of 512 bytes is written whole or not at all, and fsync
does not lie. Not assumed: that one file's fsync helps another, that names come with contents, any order between them.
"""

import functools
import hashlib
import os

SECTOR, PAGE = 512, 4096


class Content(bytes):
    """The bytes of a file in an image; images of the same moment share most of them."""

    @functools.cached_property
    def digest(self):
        return hashlib.sha256(self).digest()


class File:
    """The durable contents of an inode, and the Ops on it that are pending, in order."""

    def __init__(self, data=b""):
        self.synced, self.pending = bytearray(data), []
        self.made = {}  # contents made since the last sync, by what they are made of


def overwrite(data, offset, piece):
    """Put piece at offset of data; a gap before it reads as zeros."""
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset:offset + len(piece)] = piece


def resize(data, size):
    if len(data) > size:
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def change(data, op):
    """Do what op did, whole."""
    if op.kind == "write":
        overwrite(data, op.offset, op.data)
    else:
        resize(data, op.size)


def units(op, unit):
    """The pieces of a write that a disk writes whole: (offset, bytes) for each unit of the file."""
    at, end = op.offset, op.offset + len(op.data)
    while at < end:
        after = min(at // unit * unit + unit, end)
        yield at, op.data[at - op.offset:after - op.offset]
        at = after


class Part:
    """What an image has of one write: only some of its units."""

    def __init__(self, op, pieces):
        self.op, self.inode, self.number, self.pieces = op, op.inode, op.number, pieces

    def offsets(self):
        return tuple(offset for offset, _ in self.pieces)


class Disk:
    """The state of the disk at one moment of a trace."""

    def __init__(self, trace):
        self.root = trace.root
        self.names = {path: inode for inode, path in enumerate(trace.files)}
        self.folders = {inode for inode, data in enumerate(trace.files.values()) if data is None}
        self.files = {inode: File(data) for inode, data in enumerate(trace.files.values()) if data is not None}
        self.moves = []    # pending Ops on names
        self.done = set()  # Ops that returned
        self.covered = {}  # Sync -> the Ops it covers

    def step(self, what, thing):
        """Take one event; True if the disk a power cut leaves may differ after it."""
        if what == "leave" and thing in self.covered:
            return self.sync(thing)
        if what == "leave":
            self.done.add(thing)
        elif what == "enter" and hasattr(thing, "kind"):
            self.begin(thing)
            return True
        elif what == "enter":
            pending = self.moves if thing.inode in self.folders else self.files[thing.inode].pending
            self.covered[thing] = [op for op in pending if op in self.done]
        return False

    def begin(self, op):
        """op may be on the disk from now on."""
        if op.kind in ("write", "size"):
            self.files[op.inode].pending.append(op)
            return
        self.moves.append(op)
        if op.kind == "folder":
            self.folders.add(op.inode)
        elif op.kind == "file":
            self.files[op.inode] = File()

    def sync(self, thing):
        """What the Sync covers is durable."""
        if thing.inode in self.folders:
            ops = [op for op in self.covered.pop(thing) if os.path.dirname(op.path) == thing.path and op in self.done]
            rename(self.names, ops)
            self.moves = [op for op in self.moves if op not in ops]
        else:
            ops, file = self.covered.pop(thing), self.files[thing.inode]
            file.made.clear()
            for op in ops:
                change(file.synced, op)
            file.pending = [op for op in file.pending if op not in ops]
        self.done.difference_update(ops)
        return bool(ops)

    def pending(self):
        """All pending Ops on contents, in no order between files."""
        return [op for file in self.files.values() for op in file.pending]

    def image(self, moves, contents, sizes=None):
        """The disk with these Ops on names and on contents (or Parts of them): {path: bytes}, None for a folder.

        sizes tells of an inode which Ops decide its size; without it, those in contents."""
        names = rename(dict(self.names), moves)
        by_inode = {}
        for op in contents:
            by_inode.setdefault(op.inode, []).append(op)
        image = {}
        for path, inode in sorted(names.items()):
            if path != self.root and image.get(os.path.dirname(path), b"") is not None:
                continue  # the folder is not there
            image[path] = None if inode in self.folders else self.contents(inode, by_inode.get(inode, ()), sizes)
        return image

    def contents(self, inode, ops, sizes):
        """The file with these Ops, or Parts of them."""
        file = self.files[inode]
        sizing = sizes.get(inode) if sizes else None
        of = (*((op.number, op.offsets()) for op in ops), sizing is not None and len(sizing))
        if of not in file.made:
            if len(file.made) > 20:
                file.made.clear()
            file.made[of] = self.make(file, ops, sizing)
        return file.made[of]

    def make(self, file, ops, sizing):
        data = bytearray(file.synced)
        for op in ops:
            for offset, piece in op.pieces if isinstance(op, Part) else ():
                overwrite(data, offset, piece)
            if not isinstance(op, Part):
                change(data, op)
        if sizing is not None:
            resize(data, self.size(file, sizing))
        return Content(data)

    def size(self, file, ops):
        size = len(file.synced)
        for op in ops:
            size = op.size if op.kind == "size" else max(size, op.offset + len(op.data))
        return size


def rename(names, ops):
    """names after these Ops on names."""
    for op in ops:
        if op.kind in ("file", "folder"):
            names[op.path] = op.inode
        elif names.get(op.path) == op.inode:
            del names[op.path]
        if op.kind == "move":
            names[op.to] = op.inode
    return names


def chains(moves):
    """The Ops on names, by what they name: each list happens in its order, the lists in any."""
    found = {}
    for op in moves:
        found.setdefault(op.inode, []).append(op)
    return list(found.values())


def in_order(moves, chosen):
    chosen = set(chosen)
    return [op for op in moves if op in chosen]


def some_moves(disk, rng):
    """A beginning of each chain."""
    return in_order(disk.moves, (op for chain in chains(disk.moves) for op in chain[:rng.randint(0, len(chain))]))


def synced(disk, rng):
    """Nothing of what is pending."""
    return disk.image([], [])


def everything(disk, rng):
    """All of what is pending."""
    return disk.image(disk.moves, disk.pending())


def prefix(disk, rng):
    """What came first of all that is pending, as of a disk that keeps the order."""
    ops = sorted(disk.moves + disk.pending(), key=lambda op: op.number)
    ops = set(ops[:rng.randint(0, len(ops))])
    return disk.image(in_order(disk.moves, ops), [op for op in disk.pending() if op in ops])


def subset(disk, rng):
    """Any sectors or pages of what is pending, sizes and names as of any moment."""
    unit, share = rng.choice((SECTOR, PAGE)), rng.choice((0.1, 0.5, 0.9))
    contents, sizes = [], {}
    for inode, file in disk.files.items():
        for op in file.pending:
            if op.kind == "write":
                contents.append(Part(op, [piece for piece in units(op, unit) if rng.random() < share]))
        if file.pending:
            sizes[inode] = file.pending[:rng.randint(0, len(file.pending))]
    return disk.image(some_moves(disk, rng), contents, sizes)


def torn(disk, rng):
    """All, but of the last write only a beginning, an end, or all but one sector."""
    ops = disk.pending()
    writes = [op for op in ops if op.kind == "write"]
    if not writes:
        return everything(disk, rng)
    last = max(writes, key=lambda op: op.number)
    pieces = list(units(last, SECTOR))
    cut = rng.randrange(len(pieces))
    kept = rng.choice((pieces[:cut], pieces[cut + 1:], pieces[:cut] + pieces[cut + 1:]))
    return disk.image(disk.moves, [Part(op, kept) if op is last else op for op in ops])


def unnamed(disk, rng):
    """All contents, no change of a name."""
    return disk.image([], disk.pending())


def empty(disk, rng):
    """All names, no contents."""
    return disk.image(disk.moves, [])


def one_name(disk, rng):
    """All but the newest changes of one name."""
    found = chains(disk.moves)
    if not found:
        return everything(disk, rng)
    chain = rng.choice(found)
    lost = chain[rng.randrange(len(chain)):]
    return disk.image([op for op in disk.moves if op not in lost], disk.pending())


def one_file(disk, rng):
    """All, but of one file nothing that is pending; or nothing but that."""
    inodes = [inode for inode, file in disk.files.items() if file.pending]
    if not inodes:
        return everything(disk, rng)
    chosen, alone = rng.choice(inodes), rng.random() < 0.5
    return disk.image(disk.moves, [op for op in disk.pending() if (op.inode == chosen) == alone])


KINDS = {"synced": synced, "all": everything, "prefix": prefix, "subset": subset, "torn": torn, "unnamed": unnamed,
         "empty": empty, "one name": one_name, "one file": one_file}


def digest(image):
    """What two images share only if they are equal."""
    whole = hashlib.sha256()
    for path, data in image.items():
        whole.update(f"{path}\n".encode())
        whole.update(b"folder" if data is None else data.digest)
    return whole.digest()


def write(image, root, folder):
    """Lay the image out below folder, which takes the place of root."""
    for path, data in image.items():
        path = folder + path.removeprefix(root)
        if data is None:
            os.makedirs(path, exist_ok=True)
            continue
        with open(path, "wb") as f:
            f.write(data)


def read(folder):
    """The image that lies below folder."""
    image = {folder: None}
    for path, folders, files in os.walk(folder):
        image.update({os.path.join(path, name): None for name in folders})
        for name in files:
            with open(os.path.join(path, name), "rb") as f:
                image[os.path.join(path, name)] = f.read()
    return dict(sorted(image.items()))
