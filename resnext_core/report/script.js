(() => {
  "use strict";
  const tip = document.getElementById("tip");
  for (const svg of document.querySelectorAll("svg[data-hover]")) {
    const points = JSON.parse(svg.dataset.hover);
    const cursor = svg.querySelector(".cursor");
    const hide = () => { tip.hidden = true; cursor.style.opacity = 0; };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale;
      let near = points[0];
      for (const point of points) if (Math.abs(point[0] - x) < Math.abs(near[0] - x)) near = point;
      cursor.setAttribute("x1", near[0]);
      cursor.setAttribute("x2", near[0]);
      cursor.style.opacity = 1;
      tip.textContent = near[1];
      tip.hidden = false;
      const left = box.left + near[0] / scale + 14;
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(8, left > room ? left - tip.offsetWidth - 28 : left)}px`;
      tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
    });
  }

  // A heading sorts its table: numbers largest first, names from A; again, the other way round. Rows that are folded
  // away (data-rest names their table) take part: the first ones stay in sight.
  const value = (row, column) => {
    const text = row.cells[column].textContent.replace(/[\s\u202f]/g, "").replace("\u2212", "-");
    const number = parseFloat(text);
    return { text: row.cells[column].textContent, number, none: text === "\u2013" };
  };
  for (const table of document.querySelectorAll("table[data-sort]")) {
    const rest = document.querySelector(`table[data-rest="${table.dataset.sort}"]`);
    const bodies = [table, rest].filter(Boolean).map((part) => part.tBodies[0]);
    const sizes = bodies.map((body) => body.rows.length);
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const rows = bodies.flatMap((body) => [...body.rows]).map((row) => ({ row, ...value(row, column) }));
        const numbers = rows.every((one) => one.none || !Number.isNaN(one.number)) && column > 0;
        const up = before ? before === "descending" : !numbers;
        const sign = up ? 1 : -1;
        rows.sort((a, b) => a.none - b.none || sign * (numbers ? a.number - b.number
          : a.text.localeCompare(b.text, undefined, { numeric: true })));
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const sorted = rows.map((one) => one.row);
        bodies.forEach((body, k) => body.append(...sorted.splice(0, sizes[k])));
      });
    });
  }
})();
