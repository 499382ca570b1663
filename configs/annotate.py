# SPDX-License-Identifier: Apache-2.0
"""The data engine on photos: which specialists, which thresholds, how models refine the labels.

    florence2-jax annotate --config configs/annotate.py:/data/photos --workdir runs/engine
    florence2-jax annotate --config configs/annotate.py:/data/photos,local --workdir runs/engine \\
        --rounds 0

The part behind the colon is a store of records, with the labels that there are, then a comma and
the set of specialists: "hub" (models of the hub, GPUs advised), or "local" (Tesseract and OpenCV,
which need no download; rounds tune the tiny model of the package on boxes and writing). Every value
is ours: the paper tells no model, no threshold and no number of rounds (Florence-2 §4).
"""

from ml_collections import ConfigDict

LOCAL = {
    "reader": dict(type="tesseract", language="eng", threshold=0.5),
    "people": dict(type="opencv_people"),
    "faces": dict(type="opencv_faces"),
}

HUB = {
    "reader": dict(type="tesseract", language="eng", threshold=0.5),
    "detector": dict(type="detection", model="facebook/detr-resnet-50", batch_size=8),
    "captioner": dict(
        type="captioning", model="Salesforce/blip-image-captioning-base", batch_size=8
    ),
    # Detailed texts: the released model, in the place of the paper's large language models.
    "writer": dict(
        type="checkpoint",
        model="microsoft/Florence-2-base",
        tasks=("detailed_caption", "more_detailed_caption"),
        batch_size=8,
    ),
    "describer": dict(
        type="region_captions",
        model="Salesforce/blip-image-captioning-base",
        similarity_model="openai/clip-vit-base-patch32",
    ),
    "grounder": dict(type="grounding", model="IDEA-Research/grounding-dino-tiny"),
    "outliner": dict(type="masks", model="facebook/sam-vit-base"),
}

SPECIALISTS = {"hub": HUB, "local": LOCAL}


def get_config(choice: str = "/data/fld,hub") -> ConfigDict:
    """Two rounds of refinement, by the base model from its released weights if not "local"."""
    records, _, chosen = choice.partition(",")
    is_local = chosen == "local"
    c = ConfigDict()
    c.source = dict(records=records, split="train")
    c.audit = dict(fraction=0.02, seed=0, near_copies=True, is_guarded=True)
    c.specialists = SPECIALISTS[chosen or "hub"]
    c.combine = dict(human_iou=0.5)
    c.scale = dict(images_per_part=256, min_workers=1, max_workers=0)
    c.rounds = 2
    # Thresholds that are not named here have their defaults, which engine.json does not repeat.
    c.filter = dict(filters=("texts", "duplicates", "regions", "ocr", "phrases", "agreement"))
    c.filter.regions = dict(min_score=0.3, nms_iou=0.7, merge_iou=0.0)
    c.filter.agreement = dict(default_precision=0.5, min_support=0.0)
    c.refine = dict(iou=0.5, add_score=0.5, echo=0.3, recall=0.5, max_recall=0.95, max_score=0.99)
    c.guard = dict(max_recall_drop=0.2, significance=0.01, max_drift_bits=0.1)
    # Of the images that a round learns from, those that people have annotated; (0.1,) for one in
    # ten. With () they come as often as they are.
    c.human_shares = ()
    c.start = "previous"
    c.final_model = False
    c.sparse = dict()
    # A kind that few images have, or rare classes, get a specialist of their own in round 1:
    #   c.sparse.signs = dict(tasks=dict(od=1.0), categories=("stop sign",), total_steps=500)
    c.predict = dict()
    if is_local:
        c.predict.first = dict(batch_size=8, tasks=("od", "ocr_with_region"))
    else:
        c.predict.first = dict(batch_size=8, tasks=("caption", "detailed_caption", "od"))
        c.predict.first.tasks += ("more_detailed_caption", "ocr_with_region")
        # These ask about what the first ones have said.
        c.predict.then = dict(batch_size=8, tasks=("region_to_description",))
        c.predict.then.tasks += ("region_to_segmentation", "caption_to_phrase_grounding")
    c.train = _train_tiny() if is_local else _train_base()
    return c


def _train_base() -> ConfigDict:
    """A training run file without records: each round has its own."""
    t = ConfigDict(dict(seed=0, total_samples=200_000, accumulate=1))
    t.init = dict(model="microsoft/Florence-2-base")
    t.model = dict(image_size=768, dtype="bfloat16", remat="dots", scan=True)
    t.input = dict(batch_size=64, num_prompts=4, prompt_length=64, target_length=512)
    t.input.update(num_threads=8, tasks=dict(all=1.0, vqa=0.0))
    # These would need labels that no specialist here makes.
    t.input.tasks.update(referring_expression_segmentation=0.0)
    t.input.tasks.update(referring_expression_comprehension=0.0)
    t.optimizer = dict(peak_lr=1e-5, warmup_steps=200, weight_decay=0.05)
    t.mesh = dict(replica=1, fsdp=-1, tensor=1)
    t.checkpoint = dict(every_steps=500, keep=2)
    t.log = dict(every_steps=20)
    return t


def _train_tiny() -> ConfigDict:
    """The same for a model of 3 million parameters, of what Tesseract and OpenCV can teach."""
    t = ConfigDict(dict(seed=0, total_samples=16_000, accumulate=1))
    t.init = dict(model="scenes-tiny")
    t.model = dict(image_size=64, dtype="float32", remat="none", scan=True)
    t.input = dict(batch_size=8, num_prompts=4, prompt_length=64, target_length=256)
    t.input.update(num_threads=4, tasks=dict(all=0.0, od=1.0, region_to_category=1.0))
    t.input.tasks.update(ocr=1.0, ocr_with_region=1.0, region_to_ocr=1.0)
    t.optimizer = dict(peak_lr=3e-4, warmup_steps=100, weight_decay=0.05)
    t.mesh = dict(replica=1, fsdp=-1, tensor=1)
    t.checkpoint = dict(every_steps=500, keep=2)
    t.log = dict(every_steps=20)
    return t
