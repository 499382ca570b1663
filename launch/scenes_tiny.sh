#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the model that comes with the package, florence2_jax/shipped/scenes-tiny: the run of
# launch/local.sh, longer, on more scenes, with more weight on masks and referring expressions.
#   bash launch/scenes_tiny.sh     RUNS=folder for the run (runs), MODEL=folder for the model
# Run it again and it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup_venv.sh
setup_venv ""

runs=${RUNS:-runs}
model=${MODEL:-$runs/shipped/scenes-tiny}
records=$runs/scenes-tiny-records
workdir=$runs/scenes-tiny
florence=.venv/bin/florence2-jax

"$florence" records scenes 60256 "$records" --level easy --validation 256
"$florence" train --config "configs/scenes.py:$records" --workdir "$workdir" \
  --config.total_steps=12000 --config.input.tasks.referring_expression_segmentation=3.0 \
  --config.input.tasks.region_to_segmentation=2.0 \
  --config.input.tasks.referring_expression_comprehension=2.0
"$florence" evaluate --model "$workdir" --records "$records" --split validation \
  --json "$workdir/metrics.json" --out "$workdir/evaluation"
"$florence" convert "$workdir" "$model" --to hf --dtype float16 --round --licence apache-2.0
cat >> "$model/README.md" <<'END'
## How it was made

`bash launch/scenes_tiny.sh` of florence2_jax draws the scenes, trains, evaluates and writes this
folder. It was trained on nothing but drawn scenes of level easy (`florence2-jax records scenes`),
which hold no personal data, on two CPU cores; about photos it has nothing to say. It is for trying
things out. Its weights were rounded to 16 bits after the metrics were taken.
END
