"""Unpacking the tar archive in which USGS delivers a product, trusting nothing in it."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from glacier_core.errors import InputError, StorageError
from glacier_core.files import whole_file

SUFFIXES = (".tar", ".tar.gz", ".tgz")

# A Level-2 product has some 30 files and 1 to 2 GB unpacked.
_MOST_BYTES = 16 * 2**30
_MOST_MEMBERS = 500

_WANTED = (".tif", "_mtl.txt", "_mtl.xml", "_mtl.json")


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> None:
    """Write an archive's rasters and metadata into `folder`, each under its bare name.

    An archive with anything but plain files and folders inside it is refused as a whole: USGS
    makes none, and one that reaches outside its folder was made to do harm.

    Raises:
        InputError: not a tar archive, cut off or damaged; a member that is a link or a device,
            or whose name leads outside; a name twice; too large, or too many members.
        StorageError: no room left.
    """
    total, count, seen = 0, 0, set()
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:  # as they come: nothing is read ahead of these checks
                name = PurePosixPath(member.name)
                total, count = total + member.size, count + 1
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise InputError(
                        f"{archive}: holds {member.name!r}, which leads outside the archive's "
                        "folder. USGS makes no such archives; nothing was unpacked from there on"
                    )
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise InputError(
                        f"{archive}: holds {member.name!r}, which is a link or a device. USGS makes "
                        "no such archives; nothing was unpacked from there on"
                    )
                if total > _MOST_BYTES or count > _MOST_MEMBERS:
                    raise InputError(
                        f"{archive}: unpacks to more than {_MOST_BYTES / 2**30:.0f} GiB or "
                        f"{_MOST_MEMBERS} files; a Level-2 product has about 1 GiB and 30 files"
                    )
                if not name.name.lower().endswith(_WANTED):
                    continue
                if name.name in seen:
                    raise InputError(f"{archive}: holds {name.name} twice")
                seen.add(name.name)
                free = shutil.disk_usage(folder).free
                if member.size > free:
                    raise StorageError(
                        f"{folder.parent}: no room to unpack {name.name} of {archive.name} "
                        f"({member.size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free)"
                    )
                source = tar.extractfile(member)
                assert source is not None  # a plain file
                with whole_file(folder / name.name) as beside, beside.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
            # tarfile takes a header that is cut off or garbled for the end, which is a block of 0.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it does not end as archives do")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"{archive}: is damaged or cut off ({str(error).splitlines()[0]}); download it anew"
        ) from error
    except FileNotFoundError:
        raise InputError(f"{archive}: no such file") from None
    except OSError as error:  # gzip's own
        raise InputError(f"{archive}: cannot be read ({error}); download it anew") from error
