"""A dataset begun by this process and ended on Ray's actors is the one that this process makes alone."""

import numpy as np
import pytest
from kills import contents
from test_datasets import stop_after

from engine import AttentionMasker, read_results
from engine.datasets import shards

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_work_goes_on_across_engines(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_PROMPTS", 6)
    masker = AttentionMasker.from_pretrained(device="cpu")
    prompts = [f"The capital of {name} is" for name in ("France", "Germany", "Italy", "Spain")] * 7 + ["x"]
    masker.run_dataset(prompts, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        masker.run_dataset(prompts, tmp_path / "set", watch=stop_after(2))
    counts = []
    masker.run_dataset(
        prompts, tmp_path / "set", workers=2, ray="local", watch=lambda state: counts.append(state.counts["prompts"])
    )
    assert counts[-1] == 28
    assert len(counts) <= 3
    one, other = (read_results(tmp_path / name).collect() for name in ("whole", "set"))
    np.testing.assert_allclose(one["l2_distance"], other["l2_distance"], rtol=1e-4)
    assert one.drop("l2_distance", "cosine_distance").equals(other.drop("l2_distance", "cosine_distance"))
    assert contents(tmp_path / "set").keys() == contents(tmp_path / "whole").keys()
