import pytest

from model.checkpoint import files, sink
from schemas.error import SetupError


def fail_after(url: str, size: int) -> None:
    with sink.open_write(url) as file:
        file.write(bytes(size))
        raise ZeroDivisionError


@pytest.mark.parametrize("place", ["local", "s3", "gcs"])
def test_of_a_writer_that_fails_nothing_appears(place, tmp_path, request):
    folder = str(tmp_path) if place == "local" else request.getfixturevalue(place)
    url = files.join(folder, "half")
    for size in (5, 6 << 20):  # more than what a client holds back
        with pytest.raises(ZeroDivisionError):
            fail_after(url, size)
        assert not files.exists(url)
    with sink.open_write(url) as file:
        file.write(b"whole")
        assert file.tell() == 5
    assert files.read_bytes(url, 10) == b"whole"
    assert "half" in files.list_files(folder)


def test_what_cannot_be_written_is_told():
    told = r"cannot write /dev/full: .*No space left"
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(SetupError, match=told):
        sink._Sink(full, "/dev/full").write(b"x")
