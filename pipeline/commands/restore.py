"""Outputs that are missing, in whole or in part, and that DVC's cache has; and DVC's errors in one line.

DVC itself would run the stage of a missing output, because our outputs persist: it has no run cache for them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError
from dvc_data.hashfile.build import build
from dvc_data.hashfile.tree import Tree

from pipeline.common.errors import StudyError

RWLOCK = Path(".dvc/tmp/rwlock")


@contextmanager
def dvc_errors() -> Iterator[None]:
    """Turn an error of DVC into a StudyError of one line, which says what helps if a full disk has cut DVC's list of
    running commands off."""
    try:
        yield
    except DvcException as error:
        cause = error.__cause__
        if any(isinstance(each, RWLockFileCorruptedError | RWLockFileFormatError) for each in (error, cause)):
            raise StudyError(
                f"{RWLOCK}: broken, as a full disk leaves it; if no DVC command runs here, delete it, and run the same "
                "command again"
            ) from None
        raise StudyError(f"{error}{f': {cause}' if cause else ''}") from None


def restorable(out: Output) -> bool:
    """Whether DVC's cache has all of an output, of which files are missing and none is changed or new."""
    if not out.use_cache or not out.hash_info or not out.status() or out.changed_cache():
        return False
    if not out.exists:
        return True
    known = out.get_obj()
    _, _, now = build(out.cache, out.fs_path, out.fs, out.hash_name, ignore=out.dvcignore, dry_run=True)
    if not isinstance(known, Tree) or not isinstance(now, Tree):
        return False
    hashes = {key: found for key, _, found in known}
    return all(hashes.get(key) == found for key, _, found in now)


def restore(repo: Repo, graph: Path) -> None:
    """Bring back what can be restored of the outputs of a dvc.yaml, except the rows, which every run writes anew."""
    stages = [stage for stage in repo.stage.collect(str(graph)) if not stage.always_changed]
    outs = [out.fs_path for stage in stages for out in stage.outs if restorable(out)]
    if outs:
        repo.checkout(outs, force=True)
        print(f"DVC's cache had what was missing: {', '.join(sorted(map(os.path.relpath, outs)))}", flush=True)
