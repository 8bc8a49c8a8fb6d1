"""Files that were cut off, are of another kind, or are not there."""


def break_file(path, damage):
    whole = path.read_bytes()
    if damage == 'truncated':
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == 'empty':
        path.write_bytes(b'')
    elif damage == 'text':
        path.write_text('<html>404 Not Found</html>' * 20)
    elif damage == 'v7.3':
        # such a file starts with a text and version 0x0200, then HDF5 follows
        start = b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM'
        path.write_bytes(start + bytes(384) + b'\x89HDF\r\n\x1a\n')
    else:
        path.unlink()
