"""Search for slides in files and folders: which paths are slides, and what is left out.

A DICOM series of many files is one slide, in a folder and in a list of files alike. Folders are searched with all their
subfolders, as the GDC stores one slide per folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from napari_lrmil.core.slides.dicom_headers import DICOM, DicomHeader, may_be_dicom, read_dicom_header
from napari_lrmil.core.slides.ome_metadata import is_ome_zarr

SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".tif", ".tiff", DICOM)
# Workbooks are tables too: reading one says how to save it.
TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods")
MIRAX = ".mrxs"  # its tiles lie in a folder of the same name
RESULT_MARK = "prediction.json"  # a folder with this file holds results, and their pictures are no slides
MAX_SHOWN_NAMES = 4
HOME_FOLDERS = ("home", "Users")  # folders whose subfolders have the names of users

# What was left out: kind -> plural.
HIDDEN, RESULTS, UNREADABLE = "hidden file or folder", "folder of results", "folder that cannot be read"
FURTHER_FILE, OTHER_DICOM = "further file of a DICOM series", "DICOM object that is no slide"
BROKEN_DICOM, OTHER_TYPE, REPEATED = (
    "file that is not DICOM in spite of its ending",
    "file of another type",
    "repetition",
)
REPEATED_SERIES = "folder with a DICOM series that an earlier folder has too"
PLURALS = {
    HIDDEN: "hidden files or folders",
    RESULTS: "folders of results",
    UNREADABLE: "folders that cannot be read",
    FURTHER_FILE: "further files of DICOM series",
    OTHER_DICOM: "DICOM objects that are no slides",
    BROKEN_DICOM: "files that are not DICOM in spite of their ending",
    OTHER_TYPE: "files of other types",
    REPEATED: "repetitions",
    REPEATED_SERIES: "folders with a DICOM series that an earlier folder has too",
}


def has_slide_ending(path: Path) -> bool:
    """Return whether a path has the ending of a slide file. napari.yaml lists the same endings."""
    return path.suffix.lower() in SLIDE_ENDINGS


def is_table(path: Path) -> bool:
    """Return whether a path has the ending of a table of slides."""
    return path.suffix.lower() in TABLE_ENDINGS and not path.is_dir()


@dataclass
class SlideSearch:
    """Slides at some paths.

    Attributes
    ----------
    slides
        Slide files, and folders that hold one DICOM slide, in the order of the search.
    skipped
        Kind of what was left out, a key of `PLURALS` -> count.
    endings
        Ending of files of other types -> count.
    repeated_folders
        Names of folders with a DICOM series that was met before.
    """

    slides: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    repeated_folders: list[str] = field(default_factory=list)
    _series: set[str] = field(default_factory=set)
    _paths: set[str] = field(default_factory=set)
    _folders: set[tuple[int, int]] = field(default_factory=set)

    @property
    def notice(self) -> str:
        """Sentence on what was left out; empty if nothing was."""
        shown = {
            OTHER_TYPE: [ending or "no ending" for ending, _ in self.endings.most_common()],
            REPEATED_SERIES: self.repeated_folders,
        }
        parts = [
            f"{count} {kind if count == 1 else PLURALS[kind]}{_in_brackets(shown.get(kind, []))}"
            for kind, count in sorted(self.skipped.items())
        ]
        return f"left out: {', '.join(parts)}" if parts else ""

    def add_file(self, path: Path, *, is_only: bool = True) -> None:
        """Add a file that was given by its name. It is a slide whatever its ending; opening it tells if it is none.

        Parameters
        ----------
        is_only
            Whether no other path was given. If not, a DICOM object that is no slide is left out, because shells expand
            ``*.dcm`` to all objects of a study.
        """
        header = read_dicom_header(path) if may_be_dicom(path) else None
        if header is not None and not header.is_slide and not is_only:
            self.skipped[OTHER_DICOM] += 1
        elif header is not None and header.is_slide and header.series in self._series:
            self.skipped[FURTHER_FILE] += 1
        elif self._is_repeated(path):
            self.skipped[REPEATED] += 1
        else:
            self.slides.append(path)
            self._series |= {header.series} if header is not None and header.is_slide else set()

    def add_listed(self, path: Path) -> None:
        """Add a slide that a table lists: a file, or the folder of one DICOM slide, which is not searched."""
        if not os.path.isdir(path):
            self.add_file(path)
        elif self._is_repeated(path):
            self.skipped[REPEATED] += 1
        else:
            self.slides.append(path)

    def add_folder(self, folder: Path) -> int:
        """Add the slides in a folder and its subfolders, and return their number. An OME-Zarr folder is one slide."""
        before = len(self.slides)
        if is_ome_zarr(folder):
            self.add_listed(folder)
            return len(self.slides) - before
        entries = self._entries(folder)
        files = [entry for entry in entries if not entry.is_dir()]
        self._add_files(folder, [Path(entry) for entry in files])
        tile_folders = {name[: -len(MIRAX)] for name in (entry.name.lower() for entry in files) if name.endswith(MIRAX)}
        for entry in entries:
            if not entry.is_dir() or entry.name.lower() in tile_folders:
                continue
            # A folder that is named like a slide and holds none fails as a slide, so that it is listed.
            if not self.add_folder(Path(entry)) and has_slide_ending(Path(entry)):
                self.slides.append(Path(entry))
        return len(self.slides) - before

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return the entries of a folder that are not hidden, sorted by name; none if it holds results."""
        try:
            state = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self.skipped[UNREADABLE] += 1
            return []
        identity = state.st_dev, state.st_ino
        # A link to a folder above would be followed without end.
        if identity in self._folders or any(entry.name == RESULT_MARK for entry in entries):
            self.skipped[REPEATED if identity in self._folders else RESULTS] += 1
            return []
        self._folders.add(identity)
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        self._count(HIDDEN, len(entries) - len(shown))
        return shown

    def _add_files(self, folder: Path, files: Sequence[Path]) -> None:
        """Add the slides among the files of one folder."""
        slides = [file for file in files if has_slide_ending(file) and file.suffix.lower() != DICOM]
        objects = DicomFolder([file for file in files if may_be_dicom(file)])
        self._count(OTHER_DICOM, len(objects.others))
        others = [file for file in files if file not in {*slides, *objects.others, *objects.broken, *objects.members}]
        self._count(OTHER_TYPE, len(others))
        self.endings.update(file.suffix.lower() for file in others)
        new = {series: file for series, file in objects.slides.items() if series not in self._series}
        repeated = len(objects.slides) - len(new)
        self._count(REPEATED_SERIES, repeated)
        self.repeated_folders += [folder.name] * bool(repeated)
        self._series |= new.keys()
        is_broken_slide = bool(objects.broken) and not objects.slides
        self._count(BROKEN_DICOM, 0 if is_broken_slide else len(objects.broken))
        # The folder if it holds one slide only, because its name was chosen by a person.
        is_one_slide = not slides and len(objects.slides) <= 1
        dicom = list(new.values()) or (objects.broken[:1] if is_broken_slide else [])
        for path in sorted([*slides, *([folder] if dicom and is_one_slide else dicom)]):
            if self._is_repeated(path):
                self.skipped[REPEATED] += 1
            else:
                self.slides.append(path)

    def _count(self, kind: str, number: int) -> None:
        if number:
            self.skipped[kind] += number

    def _is_repeated(self, path: Path) -> bool:
        """Return whether a path was added before, and remember it."""
        key = os.path.abspath(path)
        is_repeated = key in self._paths
        self._paths.add(key)
        return is_repeated


def _in_brackets(names: Sequence[str]) -> str:
    """Return the first few names in brackets, after a blank; empty if there are none."""
    shown = ", ".join(names[:MAX_SHOWN_NAMES]) + (", …" if len(names) > MAX_SHOWN_NAMES else "")
    return f" ({shown})" if names else ""


def path_in_cohort(path: Path, root: Path) -> str:
    """Return the path of a slide from the folder of its cohort on, for files that others may see.

    The folders above the cohort stay out, because they often have the name of a user. A path that was given relative to
    the working directory is returned as it is.

    Parameters
    ----------
    path
        Slide, usually ``root/…``.
    root
        Folder that was searched, folder of the table that lists the slide, or the slide itself.
    """
    if not path.is_absolute() and os.pardir not in path.parts and path.parts:
        return path.as_posix()
    if path == root or not path.is_relative_to(root):
        return os.path.basename(os.path.abspath(path))
    absolute = Path(os.path.abspath(root))
    is_home = absolute == Path.home() or absolute.parent.name in HOME_FOLDERS
    inside = os.path.join("" if is_home else absolute.name, path.relative_to(root))
    # A table may list ../../slides/x.svs.
    return "/".join(part for part in Path(os.path.normpath(inside)).parts if part != os.pardir)


# ---------------------------------------------------------------- DICOM


class DicomFolder:
    """DICOM objects among files of one folder.

    Attributes
    ----------
    slides
        Series -> the file to open: one with pixels of the slide if there is any, not its label.
    members
        All files of these series.
    others
        Objects that are no slides, such as reports and annotations.
    broken
        Files with the ending of DICOM that are none.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.members: list[Path] = []
        self.others: list[Path] = []
        self.broken: list[Path] = []
        headers: dict[str, list[tuple[DicomHeader, Path]]] = {}
        for file in files:
            header = read_dicom_header(file)
            if header is None:
                self.broken += [file] if file.suffix.lower() == DICOM else []
            elif header.is_slide:
                headers.setdefault(header.series, []).append((header, file))
                self.members.append(file)
            else:
                self.others.append(file)
        self.slides = {series: _file_to_open(members) for series, members in headers.items()}


def _file_to_open(files: Sequence[tuple[DicomHeader, Path]]) -> Path:
    """Return the first file with pixels of the slide; the first of all if there are only labels and overviews."""
    return next((path for header, path in files if header.is_volume), files[0][1])


def dicom_in(folder: Path) -> DicomFolder:
    """Return the DICOM objects of a folder, without its subfolders and hidden files."""
    return DicomFolder(sorted(path for path in _visible(folder) if may_be_dicom(path)))


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))
