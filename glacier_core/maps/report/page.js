(function () {
  "use strict";
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const by_id = (id) => document.getElementById(id);
  let place = "page"; // where the reader last pressed: a glacier chosen on the map needs no zoom

  for (const kind of ["pointerdown", "keydown"]) {
    document.addEventListener(kind, (event) => {
      place = event.composedPath().includes(by_id("map")) ? "map" : "page";
    }, true);
  }

  function start(page) {
    const map = page.get_model_by_name("map");

    // --- what part of the ground is shown -----------------------------------------------------

    // The smallest part in the frame's shape around a box.
    function shape_of(x0, y0, x1, y1) {
      const frame = map.inner_width / map.inner_height * facts.stretch;
      let width = x1 - x0, height = y1 - y0;
      if (width < height * frame) width = height * frame;
      else height = width / frame;
      const x = (x0 + x1) / 2, y = (y0 + y1) / 2;
      return [x - width / 2, y - height / 2, x + width / 2, y + height / 2];
    }
    function show(x0, y0, x1, y1) {
      const [left, bottom, right, top] = shape_of(x0, y0, x1, y1);
      map.x_range.setv({ start: left, end: right });
      map.y_range.setv({ start: bottom, end: top });
    }
    function whole() {
      const [left, bottom, right, top] = shape_of(...facts.extent);
      map.x_range.setv({ start: left, end: right, reset_start: left, reset_end: right });
      map.y_range.setv({ start: bottom, end: top, reset_start: bottom, reset_end: top });
    }
    const scale = page.get_model_by_name("scale");
    if (scale) {
      const measure = () => { scale.end = (map.x_range.end - map.x_range.start) * facts.metres / 1000; };
      map.x_range.change.connect(measure);
    }
    // Fine lines over the whole of a large scene, clear ones close up.
    const lines_of = page.get_model_by_name("layer-outlines");
    function line_width() {
      const pixels = map.inner_width / (map.x_range.end - map.x_range.start) * facts.pixel;
      const wide = Math.round(5 * Math.min(1.2, Math.max(0.4, 2.5 * pixels))) / 5;
      if (lines_of && lines_of.glyph.line_width !== wide) lines_of.glyph.line_width = wide;
    }
    map.x_range.change.connect(line_width);
    whole();
    by_id("whole").addEventListener("click", whole);
    // The frame changes with the window, and a little with the width of the axes' labels.
    let size = [map.inner_width, map.inner_height];
    function resized() {
      const [wide, high] = size;
      if (map.inner_width === wide && map.inner_height === high) return;
      size = [map.inner_width, map.inner_height];
      const { start: left, end: right, reset_start, reset_end } = map.x_range;
      const { start: bottom, end: top } = map.y_range;
      const untouched = left === reset_start && right === reset_end;
      whole();
      if (untouched) return;
      const dx = (right - left) * size[0] / wide / 2, dy = (top - bottom) * size[1] / high / 2;
      const x = (left + right) / 2, y = (bottom + top) / 2;
      map.x_range.setv({ start: x - dx, end: x + dx });
      map.y_range.setv({ start: y - dy, end: y + dy });
    }
    map.properties.inner_width.change.connect(resized);
    map.properties.inner_height.change.connect(resized);

    // --- layers -------------------------------------------------------------------------------

    const boxes = [...document.querySelectorAll("input[data-layer]")];
    const renderer = (box) => page.get_model_by_name("layer-" + box.dataset.layer);
    for (const box of boxes) {
      const apply = () => { renderer(box).visible = box.checked; };
      box.addEventListener("change", apply);
      apply(); // browsers keep boxes as they were when a page is loaded again
    }
    const opacity = by_id("opacity");
    function fade() {
      for (const box of boxes) {
        if ("overlay" in box.dataset) renderer(box).glyph.global_alpha = { value: +opacity.value };
      }
    }
    opacity.addEventListener("input", fade);
    if (opacity.value !== opacity.defaultValue) fade();

    // --- the chosen glacier -------------------------------------------------------------------

    const sources = {};
    for (const name of ["glaciers", "changed"]) {
      const source = page.get_model_by_name("source-" + name);
      if (!source) continue;
      sources[name] = source;
      source.selected.properties.indices.change.connect(() => chosen(source));
    }
    const card = by_id("card");
    const hint = card && card.firstElementChild;

    function chosen(source) {
      describe();
      const at = source.selected.indices[0];
      if (place === "map" || at === undefined) return;
      // A row chooses one glacier; what was chosen in the other table may be another.
      for (const other of Object.values(sources)) {
        if (other !== source && other.selected.indices.length) other.selected.indices = [];
      }
      const corners = ["minx", "miny", "maxx", "maxy"].map((name) => source.data[name][at]);
      if (!corners.every(Number.isFinite)) return;
      const margin = 0.6 * Math.max(corners[2] - corners[0], (corners[3] - corners[1]) * facts.stretch);
      show(corners[0] - margin, corners[1] - margin / facts.stretch,
           corners[2] + margin, corners[3] + margin / facts.stretch);
      by_id("map").scrollIntoView({ block: "nearest", behavior: "smooth" });
    }

    function element(name, text, parent) {
      const made = document.createElement(name);
      made.textContent = text; // never HTML: names come from inventories
      parent.append(made);
      return made;
    }
    const number = (value, digits) => value.toLocaleString("en", {
      minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
    const with_sign = (value, digits) => (value > 0 ? "+" : "") + number(value, digits);
    const points = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"];

    function describe() {
      if (!card) return;
      card.replaceChildren();
      for (const [name, source] of Object.entries(sources)) {
        const at = source.selected.indices[0];
        if (at === undefined) continue;
        const value = (field) => field in source.data ? source.data[field][at] : undefined;
        element("h3", (name === "changed" ? "Change of " : "") + value("glac_id"), card);
        if (value("inv_id")) element("p", value("inv_id"), card).className = "second";
        (name === "changed" ? change : glacier)(value);
      }
      if (!card.children.length) card.append(hint);
    }

    function lines(pairs) {
      const list = element("dl", "", card);
      for (const [label, text] of pairs) {
        if (text === null) continue;
        const line = element("div", "", list);
        element("dt", label, line);
        element("dd", text, line);
      }
    }
    const known = (...values) => values.every(Number.isFinite);
    const written = (value, unit, digits) => known(value) ? number(value, digits) + unit : null;

    function glacier(value) {
      const area = value("area_km2");
      const bar = element("div", "", card);
      bar.className = "bar";
      for (const kind of facts.classes) {
        const part = element("span", "", bar);
        part.style.width = known(value(kind.field)) && area > 0 ? 100 * value(kind.field) / area + "%" : "0";
        part.style.background = kind.colour;
      }
      const low = value("zmin_m"), high = value("zmax_m"), aspect = value("aspect_deg");
      const classes = facts.classes.map((kind) => [
        kind.label[0].toUpperCase() + kind.label.slice(1), written(value(kind.field), " km²", 3)]);
      lines([
        ["Area", written(area, " km²", 3)],
        ...classes,
        ["± by the border", written(value("err_buffer_km2"), " km²", 3)],
        ["± by probability", written(value("err_prob_km2"), " km²", 3)],
        ["Unseen inside", value("gap_km2") > 0 ? number(value("gap_km2"), 3) + " km²" : null],
        ["Elevation", known(low, high) ? number(low, 0) + " to " + number(high, 0) + " m" : null],
        ["Median", written(value("zmed_m"), " m", 0)],
        ["Mean", written(value("zmean_m"), " m", 0)],
        ["Slope", written(value("slope_deg"), "°", 1)],
        ["Aspect", known(aspect)
          ? points[Math.round(aspect / 45) % 8] + " (" + number(aspect, 0) + "°)" : null],
        ["Confidence", written(value("confidence"), "", 2)],
        ["Place", known(value("lon"), value("lat"))
          ? Math.abs(value("lat")).toFixed(4) + (value("lat") < 0 ? "°S " : "°N ") +
            Math.abs(value("lon")).toFixed(4) + (value("lon") < 0 ? "°W" : "°E") : null],
      ]);
    }

    function change(value) {
      const moved = value("change_km2"), error = value("err_km2"), seen = value("seen_share");
      lines([
        ["Before", written(value("km2_before"), " km²", 3)],
        ["After", written(value("km2_after"), " km²", 3)],
        ["Change", known(moved) ? with_sign(moved, 3) +
          (known(error) ? " ± " + number(error, 3) : "") + " km²" : null],
        ["Rate", known(value("rate_km2_yr")) ? with_sign(value("rate_km2_yr"), 4) + " km² a year" : null],
        ["Gain, loss", known(value("gain_km2"), value("loss_km2"))
          ? number(value("gain_km2"), 3) + ", " + number(value("loss_km2"), 3) + " km²" : null],
        ["Seen at both dates", known(seen) ? number(100 * seen, 1) + " %" : null],
      ]);
    }

    document.body.dataset.ready = "yes";
  }

  function wait() {
    const page = window.Bokeh && window.Bokeh.documents[0];
    const map = page && page.is_idle && page.get_model_by_name("map");
    if (map && map.inner_width) start(page);
    else requestAnimationFrame(wait);
  }
  wait();
})();
