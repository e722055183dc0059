"""Asks the authors' code of UnSAMv2 what `tests/unit/test_unsamv2.py` holds ours to.

    python tests/golden/unsamv2/make_golden.py CHECKOUT [--list]

CHECKOUT is a clone of their repository, at the commit that README.md names; nothing of it is in here. `--list` writes
the names and shapes of their state dict too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2])]

from pipeline.environment.torch_compat import ensure_torchvision  # noqa: E402
from tests.golden.unsamv2 import drawn  # noqa: E402


def main(checkout: Path, file: Path, *more: str) -> None:
    """Writes the golden files; the drawn weights go to `file`, as the authors' builder reads them."""
    ensure_torchvision()
    sys.path.insert(0, str(checkout / "sam2"))
    import sam2
    import torch
    from PIL import Image
    from sam2 import sam2_video_predictor
    from sam2.build_sam import build_sam2, build_sam2_video_predictor
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    assert sam2.__file__ is not None
    assert Path(sam2.__file__).is_relative_to(checkout), sam2.__file__
    torch.set_grad_enabled(False)
    config = "configs/unsamv2_small.yaml"
    small = [f"++model.image_size={drawn.SIDE}"]
    empty = build_sam2(config, None, device="cpu", hydra_overrides_extra=small)
    shapes = {name: list(value.shape) for name, value in empty.state_dict().items()}
    if "--list" in more:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes.items())
        (HERE / "state_dict.json").write_text(f"{{\n{lines}\n}}\n")
    torch.save({"model": {name: torch.from_numpy(each) for name, each in drawn.weights(shapes).items()}}, file)

    found: dict[str, Any] = {}
    predictor = SAM2ImagePredictor(build_sam2(config, str(file), device="cpu", hydra_overrides_extra=small))
    predictor.set_image(drawn.photograph("image", *drawn.IMAGE_SIZE))
    for name, case in drawn.IMAGE_CASES.items():
        _, found[f"{name}/iou"], found[f"{name}/logits"] = ask(predictor, case, found)
    large = SAM2ImagePredictor(build_sam2(config, str(file), device="cpu"))
    large.set_image(drawn.photograph("image", *drawn.IMAGE_SIZE))
    _, found["large/iou"], logits = ask(large, drawn.IMAGE_CASES["click at 0.37"], found)
    found["large/logits"] = logits[:, ::8, ::8]

    frames = [drawn.photograph(f"frame {index}", *drawn.FRAME_SIZE) for index in range(drawn.FRAMES)]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    squares = [np.array(Image.fromarray(each).resize((drawn.SIDE, drawn.SIDE))) / 255.0 for each in frames]
    images = torch.from_numpy(np.stack([(each - mean) / std for each in squares]).transpose(0, 3, 1, 2)).float()
    sam2_video_predictor.load_video_frames = lambda **_: (images, *drawn.FRAME_SIZE)
    # Memories are kept in bfloat16, where a last bit that differs becomes a hundredth; here they stay as they are.
    torch.bfloat16 = torch.float32
    video = build_sam2_video_predictor(config, str(file), device="cpu", hydra_overrides_extra=small)
    state = video.init_state("")
    prompted = {"frame_idx": 0, "gra": drawn.VIDEO_G, "inference_state": state}
    video.add_new_points_or_box(obj_id=1, points=np.float32(drawn.VIDEO_CLICK), labels=np.int32([1]), **prompted)
    _, _, first = video.add_new_points_or_box(obj_id=2, box=np.float32(drawn.VIDEO_BOX), **prompted)
    found["video/first"] = first.numpy()
    steps = video.propagate_in_video(state, gra=drawn.VIDEO_G)
    found["video/all"] = np.stack([logits.numpy() for _, _, logits in steps])
    np.savez_compressed(HERE / "answers.npz", **found)
    for name, each in found.items():
        print(name, each.shape, each.dtype, float(np.abs(each).max()))


def ask(predictor: Any, case: dict[str, Any], found: dict[str, Any]) -> Any:
    points, box = case.get("points"), case.get("box")
    return predictor.predict(
        point_coords=None if points is None else np.array(points),
        point_labels=None if points is None else np.array(case["labels"]),
        box=None if box is None else np.array(box),
        mask_input=found["click at 0.37/logits"] if case.get("mask") else None,
        multimask_output=case.get("multimask", False),
        return_logits=True,
        gra=case["g"],
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]).resolve(), Path(folder) / "drawn.pt", *sys.argv[2:])
