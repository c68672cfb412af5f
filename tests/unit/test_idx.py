import gzip
from pathlib import Path

import numpy as np
import pytest

from pipelines.codecs.idx import read_idx, write_idx
from pipelines.errors import SourceError


def test_an_archive_reads_back_plain_and_gzipped(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a", values)
    (tmp_path / "a.gz").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), values)
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), values)


def test_labels_are_no_images(tmp_path: Path) -> None:
    write_idx(tmp_path / "labels", np.zeros(3, np.uint8))
    with pytest.raises(SourceError, match="not an idx archive of 3 or 4 dimensions"):
        read_idx(tmp_path / "labels", dimensions=(3, 4))
