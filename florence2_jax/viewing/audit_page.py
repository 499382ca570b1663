# SPDX-License-Identifier: Apache-2.0
"""The page on which people judge what is said about images: markup, style and script.

Three files, served as they are (`engine/auditing/server.py`); nothing from data is ever written
into them. The script asks for statements as JSON and sets every text as text.
"""

from florence2_jax.viewing.audit_script import SCRIPT
from florence2_jax.viewing.look import STYLE

__all__ = ["PAGE", "SCRIPT", "STYLE_SHEET"]

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit</title><link rel="icon" href="data:,"><link rel="stylesheet" href="audit.css">
<script src="audit.js" defer></script></head>
<body>
<header><h1>Is this true?</h1>
<div id="state"><progress id="progress" value="0" max="1"></progress>
<span id="count" role="status"></span>
<button id="help-button" type="button" title="?">Help</button></div></header>
<main>
<p id="message" class="warn" role="alert" hidden></p>
<form id="hello" hidden><label for="who">Your name is kept with every verdict.</label>
<input id="who" type="text" maxlength="80" autocomplete="name" required>
<button type="submit">Begin</button></form>
<p id="nothing" class="empty" hidden>Nothing is left to judge. Thank you.</p>
<section id="work" hidden>
<div class="stage"><div class="figure" id="figure"><img id="image" alt="">
<svg id="shapes" preserveAspectRatio="none"></svg><span class="chip above" id="chip"></span></div>
<p class="soft" id="place"></p></div>
<div class="panel">
<p class="question" id="question"></p>
<blockquote id="claim"></blockquote>
<canvas id="loupe" width="400" height="190" hidden></canvas>
<p class="soft" id="maker"></p>
<ul class="tags" id="reasons"></ul>
<p id="before" class="soft"></p>
<div class="rulings" id="rulings">
<button id="accept" type="button"><kbd>a</kbd> Accept</button>
<button id="reject" type="button"><kbd>r</kbd> Reject</button>
<button id="correct" type="button"><kbd>c</kbd> Correct</button></div>
<form id="editor" hidden>
<label id="text-field">It should say
<textarea id="text" rows="2" maxlength="4000"></textarea></label>
<fieldset id="box-field"><legend>Box, in pixels. Drag it, its corners, or draw a new one.</legend>
<label>left <input type="number" step="any" id="x0"></label>
<label>top <input type="number" step="any" id="y0"></label>
<label>right <input type="number" step="any" id="x1"></label>
<label>bottom <input type="number" step="any" id="y1"></label></fieldset>
<button type="submit"><kbd>Enter</kbd> Save</button>
<button type="button" id="cancel"><kbd>Esc</kbd> Cancel</button></form>
<nav id="moves"><button id="back" type="button"><kbd>&larr;</kbd> Back</button>
<button id="skip" type="button"><kbd>&rarr;</kbd> Later</button>
<label><input id="others" type="checkbox"> <kbd>o</kbd> other boxes</label></nav>
</div></section>
<dialog id="help"><h2>Keys</h2><dl>
<dt><kbd>a</kbd></dt><dd>Accept: it is true of this image, and the box fits.</dd>
<dt><kbd>r</kbd></dt><dd>Reject: it is not true, or the box shows something else.</dd>
<dt><kbd>c</kbd></dt><dd>Correct the words or the box; <kbd>Enter</kbd> saves, <kbd>Esc</kbd>
cancels.</dd>
<dt><kbd>&rarr;</kbd></dt><dd>Later: it comes again after all others.</dd>
<dt><kbd>&larr;</kbd></dt><dd>Back to what you judged before; your last word counts.</dd>
<dt><kbd>o</kbd></dt><dd>Show the other boxes of the image.</dd>
<dt><kbd>?</kbd></dt><dd>This help; <kbd>Esc</kbd> closes it.</dd></dl>
<p class="soft">Words on this page come from models and images. They are shown as they are; do
not do what they say.</p><form method="dialog"><button>Close</button></form></dialog>
</main></body></html>
"""

STYLE_SHEET = (
    STYLE
    + """
[hidden] { display:none !important }
header { display:flex; flex-wrap:wrap; gap:4px 24px; align-items:center; padding-top:14px }
h1 { font-size:22px; margin:0 } #state { margin-left:auto; display:flex; gap:14px;
  align-items:center; font-variant-numeric:tabular-nums; color:var(--soft); font-size:14px }
progress { width:150px; accent-color:var(--accent) }
main { padding-top:12px; padding-bottom:20px }
#work { display:grid; grid-template-columns:minmax(0,7fr) minmax(300px,4fr); gap:24px;
  align-items:start }
.stage { background:var(--card); border:1px solid var(--line); border-radius:14px; padding:14px }
.stage .figure { width:min(100%, (100vh - 170px) * var(--ratio)); max-width:100% }
.stage p { margin:8px 0 0; text-align:center; overflow-wrap:anywhere }
.figure svg { overflow:visible; touch-action:none; filter:none }
.figure .edge { fill:none; stroke:#000; stroke-opacity:.75; stroke-width:4.5; pointer-events:none }
.figure .mine { fill:none; stroke:#fff000; stroke-width:2.4; pointer-events:none }
.figure .other { fill:none; stroke:#fff; stroke-opacity:.85; stroke-width:1.2;
  stroke-dasharray:5 4; pointer-events:none }
.figure .old { stroke-dasharray:4 4; stroke-opacity:.7; stroke-width:1.4 }
.figure .handle { fill:#fff000; fill-opacity:1; stroke:#000; stroke-width:1; pointer-events:all }
.figure .ground { fill:#000; fill-opacity:0; stroke:none; pointer-events:all; cursor:crosshair }
.figure .body { fill:#fff000; fill-opacity:.08; stroke:none; pointer-events:all; cursor:move }
#chip { background:#fff000; color:#000; font-weight:600; max-width:100% }
.panel { background:var(--card); border:1px solid var(--line); border-radius:14px;
  padding:18px 20px }
.question { margin:0; color:var(--soft) }
blockquote { margin:6px 0 12px; font-size:24px; line-height:1.3; font-weight:600;
  overflow-wrap:anywhere; white-space:pre-wrap; max-height:38vh; overflow:auto }
blockquote.long { font-size:17px; font-weight:400 }
blockquote mark { background:#fff000; color:#000; border:0; border-radius:3px }
#loupe { display:block; width:100%; border-radius:8px; background:var(--tint); margin:0 0 10px }
.panel p { margin:0 0 8px; overflow-wrap:anywhere } .tags { margin:0 0 12px }
.rulings { display:grid; grid-template-columns:repeat(3, 1fr); gap:8px; margin:14px 0 0 }
button, input, textarea { font:inherit; color:var(--text); background:var(--tint);
  border:1px solid var(--line); border-radius:9px; padding:7px 12px }
button { cursor:pointer } button:hover { border-color:var(--accent) }
button:disabled { opacity:.5; cursor:default }
.rulings button { padding:11px 6px; font-weight:600 }
#accept { border-bottom:3px solid #2c8f4e } #reject { border-bottom:3px solid #c43434 }
#correct { border-bottom:3px solid #b98500 }
.chosen { outline:2px solid var(--accent) }
kbd { font:600 12px ui-monospace, monospace; border:1px solid var(--line); border-radius:4px;
  padding:1px 5px; background:var(--card); color:var(--soft) }
nav { display:flex; flex-wrap:wrap; gap:8px; align-items:center; margin-top:12px }
nav label { margin-left:auto; font-size:14px; color:var(--soft) }
#editor { border-top:1px solid var(--line); margin-top:14px; padding-top:12px }
#editor > button { margin-top:10px }
#editor label { display:block; color:var(--soft); font-size:14px }
#editor textarea { width:100%; resize:vertical; display:block; margin-top:3px }
fieldset { border:0; margin:10px 0; padding:0; display:grid; gap:6px;
  grid-template-columns:repeat(4, minmax(0,1fr)) }
legend { font-size:14px; color:var(--soft); margin-bottom:4px }
fieldset input { width:100%; padding:5px 7px }
#hello { max-width:420px; margin:12vh auto; display:grid; gap:10px; background:var(--card);
  border:1px solid var(--line); border-radius:14px; padding:24px }
#message { margin:0 0 12px }
dialog { border:1px solid var(--line); border-radius:14px; background:var(--card);
  color:var(--text); max-width:520px; padding:20px 26px }
dialog::backdrop { background:rgb(0 0 0 / .4) }
dialog h2 { margin:0 0 8px } dl { display:grid; grid-template-columns:auto 1fr; gap:6px 14px;
  margin:0 0 12px } dd { margin:0 }
@media (max-width: 860px) { #work { grid-template-columns:minmax(0,1fr) }
  .stage .figure { width:min(100%, 55vh * var(--ratio)) } progress { width:90px } }
"""
)
