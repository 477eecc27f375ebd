"""What is in a folder, and a disk that is full."""


def tree(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def fail(*_):
    raise OSError(28, "disk full")
