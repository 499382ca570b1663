#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to a trained tiny Florence-2 and a page of its answers, on any machine.
#   bash launch/local.sh [--config.KEY=VALUE ...]     RUNS=folder for the results (runs)
# Run it again and it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup_venv.sh
setup_venv ""

runs=${RUNS:-runs}
records=$runs/scenes-records
workdir=$runs/scenes
florence=.venv/bin/florence2-jax

say "1/4 drawing scenes"
"$florence" records scenes 20256 "$records" --level easy --validation 256
say "2/4 pretraining"
"$florence" train --config "configs/scenes.py:$records" --workdir "$workdir" "$@"
say "3/4 evaluating on scenes it has never seen"
"$florence" evaluate --model "$workdir" --records "$records" --split validation \
  --json "$workdir/metrics.json" --gallery "$workdir/gallery.html"
say "4/4 drawing a page of the records it learnt from"
"$florence" records view "$records" --split train --number 48 --out "$workdir/records.html"

cat <<END

Done. Open in a browser:
  $workdir/gallery.html    truth beside prediction, task by task
  $workdir/records.html    what it learnt from
And there are:
  $workdir                 checkpoints, tokenizer, metrics.jsonl, tensorboard/
  $workdir/metrics.json    the table above
  $records                 the records, a TFDS directory
Ask it about an image:
  $florence predict --model $workdir --task '<OD>' IMAGE --draw $runs/answers
END
