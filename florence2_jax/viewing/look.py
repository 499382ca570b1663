# SPDX-License-Identifier: Apache-2.0
"""The style sheet of all pages; plain text, put into each page as it is.

`--c` is the colour of a label, `--ink` black or white, whichever can be read on it.
"""

STYLE = """
:root { color-scheme: light dark; --paper:#f4f5f7; --card:#fff; --text:#1b1d23; --soft:#646b79;
  --line:#dfe2e8; --tint:#eef0f4; --accent:#2557d6; --warn:#9a3a00; --warn-tint:#fff1e2; }
@media (prefers-color-scheme: dark) { :root { --paper:#121419; --card:#1b1e25; --text:#e7e9ee;
  --soft:#9aa2b1; --line:#2e333d; --tint:#252932; --accent:#83a6ff; --warn:#ffb27a;
  --warn-tint:#3a2716; } }
* { box-sizing: border-box }
body { margin:0; background:var(--paper); color:var(--text);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
header, main, .top, .bar > div { max-width:1360px; margin:0 auto; padding:0 24px }
header { padding-top:28px }
h1 { font-size:27px; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em;
  overflow-wrap:anywhere }
h2 { font-size:20px; margin:34px 0 2px } h2 + p { margin:0 0 14px; color:var(--soft) }
h3 { font-size:11.5px; letter-spacing:.07em; text-transform:uppercase; color:var(--soft);
  margin:18px 0 4px; font-weight:650 }
h3:first-child { margin-top:0 }
.lead { margin:0; color:var(--soft); max-width:110ch }
.soft, .by { color:var(--soft); font-size:13px } .by { margin-left:.5em; white-space:nowrap }
.top { padding-top:16px }
.legend { display:flex; flex-wrap:wrap; gap:4px 20px; color:var(--soft); font-size:13.5px;
  margin:12px 0 0; padding:0; list-style:none; align-items:center }
.legend svg { width:26px; height:17px; vertical-align:-3px; margin-right:7px; overflow:visible }
.legend svg * { stroke:var(--text); stroke-width:1.8; fill:none }
.legend svg .poly { fill:var(--text); fill-opacity:.2 }
.bar { position:sticky; top:0; z-index:9; margin-top:16px; background:var(--card);
  border-block:1px solid var(--line) }
.bar > div { display:flex; flex-wrap:wrap; gap:6px 16px; align-items:center; padding-block:9px }
.bar label { display:inline-flex; gap:6px; align-items:center; cursor:pointer }
.bar label[hidden] { display:none }
.bar small { color:var(--soft); font-variant-numeric:tabular-nums }
.bar input[type=checkbox] { accent-color:var(--accent); margin:0; width:15px; height:15px }
.bar input[type=search] { margin-left:auto; width:170px }
.bar input[type=search], .bar input[type=text], .bar select, .bar button { font:inherit;
  font-size:14px; padding:3px 10px; color:var(--text); border:1px solid var(--line);
  border-radius:8px; background:var(--tint) }
.bar select { max-width:160px } .bar input[type=text] { width:120px }
.bar > .fields { column-gap:12px } .fields label { color:var(--soft); font-size:13.5px }
.bar input[type=range] { width:84px; accent-color:var(--accent) }
.bar output { min-width:3.4ch; font-variant-numeric:tabular-nums }
.bar button { cursor:pointer; color:var(--accent) } .bar #count { min-width:14ch }
.bar [hidden] { display:none }
.bar > .switches { padding-top:0 }
:focus-visible { outline:2px solid var(--accent); outline-offset:2px }
summary:focus-visible { outline-offset:-2px }
main { padding-bottom:60px }
.card { background:var(--card); border:1px solid var(--line); border-radius:14px; margin:18px 0;
  padding:18px; content-visibility:auto; contain-intrinsic-size:auto 520px; display:grid;
  grid-template-columns:minmax(0,11fr) minmax(0,9fr); gap:6px 26px; align-items:start }
.card[hidden], section[hidden] { display:none }
/* Cards made when they come near: until then as tall as they will be, about. */
.later { content-visibility:visible; scroll-margin-top:calc(var(--bar, 0px) + 12px);
  min-height:calc(min(560px, 50vw / var(--ratio)) + 84px) }
.later.made { min-height:0 }
.card > .head { grid-column:1/-1; display:flex; gap:4px 14px; align-items:baseline;
  flex-wrap:wrap; margin-bottom:6px }
.head b, .head .soft { overflow-wrap:anywhere; min-width:0 } .head .score { margin-left:auto }
.prompt { flex-basis:100%; font-size:16px; overflow-wrap:anywhere }
.words { margin:2px 0 6px; white-space:pre-wrap; overflow-wrap:anywhere }
.figure { position:relative; aspect-ratio:var(--ratio); margin:0 auto;
  width:min(100%, 560px * var(--ratio)); border-radius:6px; background:var(--tint) }
.figure img { width:100%; height:100%; display:block; border-radius:6px;
  image-orientation:none }
.figure svg { position:absolute; inset:0; width:100%; height:100%; overflow:hidden;
  border-radius:6px; filter:drop-shadow(0 0 .6px rgb(0 0 0 / .9)) }
.no-image { position:absolute; inset:0; display:grid; place-content:center; text-align:center;
  padding:12px; color:var(--warn); background:var(--warn-tint); border-radius:6px }
.figure rect, .figure polygon { fill:var(--c); fill-opacity:0; stroke:var(--c); stroke-width:2;
  stroke-linejoin:round; vector-effect:non-scaling-stroke; pointer-events:all }
.figure .poly { fill-opacity:.2; stroke-width:1.4 }
.figure .crowd, .legend .crowd { stroke-dasharray:9 6 }
.figure .crowd.poly { stroke:none }
.figure .grounding, .legend .grounding { stroke-dasharray:.1 5; stroke-linecap:round }
.figure .grounding { stroke-width:2.6 }
.figure .asked { stroke-dasharray:.1 5; stroke-linecap:round; stroke-width:3 }
.dim svg :not(.lit), .dim .chip:not(.lit) { opacity:.22 }
.figure .lit { stroke-width:3.4 } .figure rect.lit { fill-opacity:.14 }
.chip { position:absolute; background:var(--c); color:var(--ink); pointer-events:none;
  font-size:12px; line-height:17px; padding:0 5px; border-radius:3px; white-space:nowrap;
  overflow:hidden; text-overflow:ellipsis }
.chip b { display:none; font-weight:600 } .chip b.on { display:inline }
.chip.above { transform:translateY(-100%) } .chip.lit { z-index:3 }
.aside { opacity:.2 }
.chip.shy:not(.lit), .no-labels .chip:not(.lit), .off { display:none }
.notes { max-height:660px; overflow:auto; scrollbar-width:thin }
mark { background:color-mix(in srgb, var(--c) 26%, transparent); color:inherit; cursor:default;
  border-bottom:2.5px solid var(--c); border-radius:3px 3px 0 0; padding:0 1px }
mark.lit { background:var(--c); color:var(--ink) }
.tags { display:flex; flex-wrap:wrap; gap:4px; margin:10px 0 0; padding:0; list-style:none;
  font-size:13px; max-height:168px; overflow:auto }
.tags li { padding:0 7px; border-radius:5px; border:1px solid var(--line); cursor:default;
  overflow-wrap:anywhere }
.tags li.lit { background:var(--tint) }
.swatch { display:inline-block; width:10px; height:10px; border-radius:3px; background:var(--c);
  margin-right:6px; box-shadow:0 0 0 1px rgb(0 0 0 / .25) }
.qa { margin:0 } .qa dd { margin:0 0 6px; } .qa dt { font-weight:600 }
.list { margin:0; padding:0; list-style:none } .list li { margin:2px 0; overflow-wrap:anywhere }
summary { cursor:pointer; color:var(--accent); font-size:14px; margin-top:10px }
details table, .metrics { border-collapse:collapse; width:100% }
details table { font-size:13px } details td { padding:3px 8px 3px 0; vertical-align:top;
  border-top:1px solid var(--line); overflow-wrap:anywhere }
details tr.lit { background:var(--tint) }
pre { margin:6px 0 0; white-space:pre-wrap; overflow-wrap:anywhere; font-size:12.5px;
  background:var(--tint); padding:8px 10px; border-radius:8px }
.warn { color:var(--warn); background:var(--warn-tint); border-radius:8px; padding:6px 10px;
  margin:10px 0 0; overflow-wrap:anywhere; font-size:14px }
.badge { font-size:12.5px; border-radius:6px; padding:0 7px; background:var(--tint);
  border:1px solid var(--line); font-variant-numeric:tabular-nums; white-space:nowrap }
.card.pair { grid-template-columns:minmax(0,1fr) minmax(0,1fr) }
.card.told { grid-template-columns:minmax(0,2fr) minmax(0,3fr)
  minmax(0,3fr) }
.pair .figure { width:min(100%, 460px * var(--ratio)) }
.told .figure { width:min(100%, 320px * var(--ratio)) }
.metrics { background:var(--card); border:1px solid var(--line); border-radius:12px;
  border-spacing:0; border-collapse:separate; overflow:hidden }
.metrics th, .metrics td { text-align:left; padding:7px 14px; border-top:1px solid var(--line) }
.metrics thead th { border-top:0; font-size:12.5px; color:var(--soft); font-weight:600 }
.metrics .num { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap }
.metrics .bars { width:34% } .bars i { display:block; height:9px; border-radius:3px;
  background:var(--accent); min-width:2px } .bars i.blind { background:var(--soft);
  opacity:.55; height:6px; margin-top:3px }
.key i { display:inline-block; width:22px; height:9px; border-radius:3px; margin-right:6px;
  background:var(--accent) } .key i.blind { background:var(--soft); opacity:.55; height:6px;
  margin-left:14px; vertical-align:1px }
.empty { text-align:center; color:var(--soft); padding:80px 0 }
#tip { position:fixed; z-index:20; max-width:min(440px, 90vw); padding:7px 11px; font-size:13px;
  border-radius:8px; background:#14161b; color:#f2f3f6; white-space:pre-line; pointer-events:none;
  box-shadow:0 4px 18px rgb(0 0 0 / .35); overflow-wrap:anywhere }
#tip[hidden] { display:none }
@media (max-width: 860px) { .card, .card.pair, .card.told { grid-template-columns:minmax(0,1fr) }
  header, main, .top, .bar > div { padding-inline:14px } .metrics .bars { display:none }
  .bar { position:static } .bar input[type=search] { margin-left:0 }
  .later { min-height:calc(min(560px, 90vw / var(--ratio)) + 300px) }
  .metrics th, .metrics td { padding-inline:8px } }
"""
