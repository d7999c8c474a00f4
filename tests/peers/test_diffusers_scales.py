"""What diffusers' pipelines multiply by `guidance_scale`, read in their source: which guess do they count from?"""

import ast
import warnings
from collections import defaultdict
from pathlib import Path

import pytest

from difflesson import conventions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra: peers)")

PIPELINES = Path(diffusers.__file__).parent / "pipelines"


def sums(source: str) -> list[str]:
    """For each `a + guidance_scale * (b - c)` in a file: does it count "from b" or "from c"?"""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(a, ast.Add(), ast.BinOp(scale, ast.Mult(), ast.BinOp(b, ast.Sub(), c))):
                names = {ast.unparse(b): "from b", ast.unparse(c): "from c"}
                if "guidance_scale" in ast.unparse(scale) and ast.unparse(a) in names:
                    found.append(names[ast.unparse(a)])
    return found


def test_most_pipelines_count_from_the_guess_without_the_label_and_three_folders_from_the_one_with_it():
    folders = defaultdict(set)
    for path in sorted(PIPELINES.rglob("*.py")):
        for counts in sums(path.read_text(encoding="utf-8")):
            folders[counts].add(path.relative_to(PIPELINES).parts[0])
    assert folders["from b"] == {"z_image", "krea2", "cosmos"}
    assert len(folders["from c"]) > 40 and {"stable_diffusion", "stable_diffusion_xl", "dit", "wan"} < folders["from c"]
    assert conventions.GUIDANCE["z-image"][0] == 1 and conventions.GUIDANCE["diffusers"][0] == 0


@pytest.mark.parametrize("folder, bound", [("z_image", "0"), ("krea2", "0"), ("cosmos", "1.0"), ("dit", "1")])
def test_where_a_pipeline_switches_guidance_on(folder, bound):
    texts = [path.read_text(encoding="utf-8") for path in sorted((PIPELINES / folder).glob("pipeline_*.py"))]
    assert any(f"guidance_scale > {bound}" in text for text in texts)
    if bound == "0":
        assert conventions.LOWEST["z-image"] == 0
        assert not any("return self._guidance_scale > 1" in text for text in texts)


def test_fluxs_guidance_scale_is_an_input_of_its_network_and_its_line_has_another_name():
    text = (PIPELINES / "flux" / "pipeline_flux.py").read_text(encoding="utf-8")
    assert "torch.full([1], guidance_scale" in text and "guidance=guidance" in text
    assert "neg_noise_pred + true_cfg_scale * (noise_pred - neg_noise_pred)" in text
    assert "flux" in conventions.NO_SINGLE_GAMMA
