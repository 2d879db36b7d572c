"""Pictures that need no run."""

import matplotlib.image
import pytest

from ajepa.config import MaskConfig
from pipelines.figures import draw_mask_strategies


@pytest.mark.parametrize("placement", ["wrap", "inside"])
def test_masking_strategies_are_drawn_under_the_settings_given(tmp_path, placement):
    draw_mask_strategies(MaskConfig(placement=placement, mask_ratio=0.5), tmp_path / "new" / "masks.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "new" / "masks.png").shape
    assert width > height > 1000
