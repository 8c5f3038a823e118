"""Files of photographs and captions, as people write them: read whole, or refused with the line that is wrong."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.errors import ExportRefused
from model_store.hub.checks import read_pairs

PICTURE = (Path(__file__).parents[3] / "docs" / "photos" / "cat.jpg").read_bytes()


def written(folder: Path, content: bytes) -> Path:
    (folder / "cat.jpg").write_bytes(PICTURE)
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.jpg").write_bytes(PICTURE[: len(PICTURE) // 2])
    (folder / "pairs.csv").write_bytes(content)
    return folder / "pairs.csv"


def test_pairs_are_read_in_any_order_of_columns_and_with_excels_mark(tmp_path: Path) -> None:
    content = '\ufeffnote,caption,image\nx,"a cat, asleep",cat.jpg\n,Straße\u3000été,cat.jpg\n'
    pairs = read_pairs(written(tmp_path, content.encode()))
    assert pairs.captions == ("a cat, asleep", "Straße\u3000été")
    assert pairs.pictures == (PICTURE, PICTURE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected the columns image,caption in its first line, got ''"),
        (b"picture,text\ncat.jpg,a\n", "got 'picture,text'"),
        (b"image;caption\ncat.jpg;a\n", "got 'image;caption'"),
        (b"image,caption\n", "0 captions"),
        (b"image,caption\ncat.jpg,a\n", "1 captions"),
        (b"image,caption\ncat.jpg,a\ncat.jpg,a\n", "2 captions, 1 of them different"),
        (b"image,caption\ncat.jpg,a\ncat.jpg\n", "pairs.csv, line 3: no caption"),
        (b"image,caption\ncat.jpg, \ncat.jpg,b\n", "pairs.csv, line 2: no caption"),
        (b"image,caption\nno.jpg,a\ncat.jpg,b\n", "line 2: .*no.jpg' is no file"),
        (b"image,caption\n.,a\ncat.jpg,b\n", "line 2: .* is no file"),
        (b"image,caption\na\0b.jpg,a\ncat.jpg,b\n", "pairs.csv"),
        (b"image,caption\ncat.jpg,a\ntext.jpg,b\n", "line 3: .*text.jpg': not an image of an accepted format"),
        (b"image,caption\ncat.jpg,a\ncut.jpg,b\n", "line 3: .*cut.jpg'"),
        ("image,caption\ncat.jpg,a\n".encode("utf-16"), "cannot be read as a CSV file in UTF-8"),
        (b"image,caption\ncat.jpg," + b"x" * 200_000, "field larger than field limit"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ExportRefused, match=said):
        read_pairs(written(tmp_path, content))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportRefused, match="is no plain file"):
        read_pairs(tmp_path / "pipe")
    with pytest.raises(ExportRefused, match="line 2: .*pipe' is no file"):
        read_pairs(written(tmp_path, b"image,caption\npipe,a\n"))


@settings(max_examples=200, deadline=None)
@given(
    data=st.one_of(st.binary(max_size=200), st.text("image,caption\n\r\"'\0 .jpg;\x1b", max_size=80).map(str.encode))
)
def test_any_bytes_are_pairs_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    for head in (b"", b"image,caption\n"):
        file.write_bytes(head + data)
        with pytest.raises(ExportRefused, match=r"pairs\.csv"):
            read_pairs(file)
