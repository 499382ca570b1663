# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax predict`: answers about images, on the terminal, as JSON, as pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

if TYPE_CHECKING:
    from florence2_jax.inference.predictor import Question, TaskInput
    from florence2_jax.tasks.registry import Task

_EXAMPLES = """examples:
  florence2-jax predict --model runs/scenes --task '<OD>' photo.jpg --draw answers
  florence2-jax predict --model runs/scenes --task caption --task ocr photos/
  florence2-jax predict --model runs/scenes --task open_vocabulary_detection \\
      --text cat --text dog photo.jpg
  florence2-jax predict --model runs/scenes --task region_to_category \\
      --region 10,20,200,180 photo.jpg --json answer.json
"""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax predict",
        description="Asks a model about images.",
        epilog=_EXAMPLES,
    )
    command.add_argument(
        "--model", required=True, help="workdir, folder of transformers, hub name, or scenes-tiny"
    )
    command.add_argument(
        "--task", required=True, action="append", metavar="TASK", help="'<OD>' or od; repeatable"
    )
    command.add_argument(
        "--text",
        action="append",
        default=[],
        help="caption, expression or question; several names for open_vocabulary_detection",
    )
    command.add_argument(
        "--region", metavar="X0,Y0,X1,Y1", help="box in pixels, for tasks that ask about a region"
    )
    command.add_argument("--beams", type=int, metavar="N", help="of the search (the model's own)")
    command.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="of an answer, at most (the model's own)"
    )
    command.add_argument(
        "--grammar", action="store_true", help="write only what parses, see the README"
    )
    command.add_argument("--draw", metavar="DIR", type=Path, help="write the answers as pictures")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files or folders")
    leaf(command, _run)
    return command


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from florence2_jax.data.transforms import decode
    from florence2_jax.inference.predictor import Predictor
    from florence2_jax.records.checks import ImageError
    from florence2_jax.tasks.registry import get_task

    tasks = [get_task(name) for name in args.task]
    paths = _image_paths(args.images)
    given = {"num_beams": args.beams, "max_new_tokens": args.max_new_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    predictor = Predictor.load(args.model, is_constrained=args.grammar, **options)
    console, rows, set_aside = Console(), [], []
    for path in paths:
        try:
            image = decode(path.read_bytes(), upright=True)
        except ImageError as error:
            set_aside.append({"image": str(path), "reason": str(error)})
            console.print(f"{path}: set aside, {error}", style="yellow", markup=False)
            continue
        questions: list[Question] = [(task, _input(task, args)) for task in tasks]
        console.print(f"{path} {image.width} x {image.height}", style="bold", markup=False)
        for task, one in zip(tasks, predictor.ask(image, questions), strict=True):
            rows.append(
                {"image": str(path), "input": _input(task, args), "raw": one.raw}
                | {"mean_log_prob": one.mean_log_prob, "text_score": one.scores.text}
                | one.answer.to_json()
            )
            _show(console, task.name, one.answer)
            if args.draw:
                from florence2_jax.viewing.draw import draw_answer

                args.draw.mkdir(parents=True, exist_ok=True)
                # Numbered: two folders may hold images of one name.
                target = args.draw / f"{paths.index(path):04d}.{path.stem}.{task.name}.png"
                draw_answer(image, one.answer).save(target)
                console.print(f"    drawn: {target}", highlight=False, markup=False)
    if not rows:
        raise UserError(f"none of {len(paths)} images could be read, see above")
    return {"model": str(args.model), "answers": rows, "set_aside": set_aside}


def _image_paths(given: Sequence[Path]) -> list[Path]:
    paths = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            if not inside:
                raise UserError(f"{path}: no images ({', '.join(_SUFFIXES)}) in this folder")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"{path}: no such image or folder")
    return paths


def _input(task: "Task", args: argparse.Namespace) -> "TaskInput":
    """What of the flags a task takes."""
    if task.input == "none":
        return ""
    if task.input == "text":
        return args.text
    if args.region is None:
        raise UserError(f"{task.token} asks about a region: give --region X0,Y0,X1,Y1 in pixels")
    try:
        return [float(value) for value in args.region.split(",")]
    except ValueError as error:
        raise UserError(f"--region {args.region}: {error}") from error


def _show(console: Any, name: str, answer: Any) -> None:
    from rich.markup import escape

    from florence2_jax.tasks.answers import BoxRegion, QuadRegion, TextAnswer

    if isinstance(answer, TextAnswer):
        console.print(f"  {name}: [cyan]{escape(answer.text)}[/]", highlight=False)
    else:
        console.print(f"  {name}: {len(answer.regions)} regions", highlight=False)
        for region in answer.regions:
            if isinstance(region, BoxRegion):
                place = "box " + ", ".join(f"{v:.1f}" for v in region.box)
            elif isinstance(region, QuadRegion):
                place = "quad " + ", ".join(f"{v:.1f}" for v in region.quad)
            else:
                points = sum(len(polygon) for polygon in region.polygons) // 2
                place = f"{len(region.polygons)} polygon(s), {points} points"
            score = "" if region.score is None else f"  [dim]{region.score:.2f}[/]"
            console.print(f"    [cyan]{escape(region.label)}[/] {place}{score}", highlight=False)
    if answer.unparsed:
        rest = escape(" ".join(answer.unparsed))
        console.print(f"    [yellow]could not be read: {rest}[/]", highlight=False)
