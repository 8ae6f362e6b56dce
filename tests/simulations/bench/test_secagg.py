"""The benchmark runs the real code and writes what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from simulations.bench.secagg import Report, main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("bits", "word"), [(32, 4), (64, 8)])
def test_every_combination_is_measured_and_written(tmp_path: Path, bits: int, word: int) -> None:
    output = tmp_path / "secagg.json"
    main(
        [
            "--cohorts",
            "2",
            "12",
            "--dimensions",
            "1000",
            "--bits",
            str(bits),
            "--repetitions",
            "1",
            "--output",
            str(output),
        ]
    )
    report = msgspec.json.decode(output.read_bytes(), type=Report)
    assert [(cost.institutions, cost.dimension) for cost in report.costs] == [(2, 1000), (12, 1000)]
    for cost in report.costs:
        assert word * 1000 < cost.upload_bytes < word * 1000 + 2048
        assert cost.request_overhead_bytes < 2048
        assert cost.client_s >= cost.answer_s > 0
        assert min(cost.mask_s, cost.sum_s, cost.session_s, cost.flower_per_mask_s) > 0
        assert cost.faster_per_mask == pytest.approx(cost.flower_per_mask_s / cost.per_mask_s)


def test_without_a_file_the_report_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--cohorts", "2", "--dimensions", "10", "--repetitions", "1"])
    assert msgspec.json.decode(capsys.readouterr().out, type=Report).repetitions == 1
