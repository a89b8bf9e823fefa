"use strict";
// Tables: headings sort, words filter, boxes show columns. The full network stays on top.
const byId = (id) => document.getElementById(id);
const number = (text) => parseFloat(text.replace("−", "-"));
const each = (selector, of) => document.querySelectorAll(selector).forEach(of);

each(".tools", (tools) => { tools.hidden = false; });

each("table.data", (table) => {
  const headings = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  const inOrder = Array.from(body.rows);
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].textContent);
    const [m, n] = [number(x), number(y)];
    if (isNaN(m) || isNaN(n)) {
      // What has no number goes to the end, whichever way.
      if (isNaN(m) !== isNaN(n)) return isNaN(m) ? 1 : -1;
      return sign * x.localeCompare(y, "en", { numeric: true });
    }
    return sign * (m - n);
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const was = heading.getAttribute("aria-sort");
      const first = heading.classList.contains("text") || column === 0 ? "ascending" : "descending";
      const second = first === "ascending" ? "descending" : "ascending";
      // The third time, as it was.
      const now = !was ? first : was === first ? second : null;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      const rows = inOrder.slice();
      if (now) {
        heading.setAttribute("aria-sort", now);
        rows.sort(compare(column, now === "ascending" ? 1 : -1));
      }
      const pinned = rows.filter((row) => row.classList.contains("full"));
      body.append(...pinned, ...rows.filter((row) => !row.classList.contains("full")));
    });
  });

  const count = document.querySelector(`[data-count="${table.id}"]`);
  const filter = document.querySelector(`[data-filter="${table.id}"]`);
  const condition = (term) => {
    const parts = /^([^<>=]+)(<=|>=|<|>|=)(-?[\d.]+)[x%]?$/.exec(term);
    if (!parts) return (row) => row.textContent.toLowerCase().includes(term);
    const [, name, sign, value] = parts;
    const column = headings.findIndex((heading) => heading.textContent.toLowerCase().startsWith(name));
    const limit = parseFloat(value);
    return (row) => {
      const found = column < 0 ? NaN : number(row.cells[column].textContent);
      return { "<": found < limit, ">": found > limit, "<=": found <= limit, ">=": found >= limit, "=": found === limit }[sign];
    };
  };
  const apply = () => {
    const conditions = filter.value.toLowerCase().split(/\s+/).filter(Boolean).map(condition);
    let shown = 0;
    inOrder.forEach((row) => {
      const fits = row.classList.contains("full") || conditions.every((holds) => holds(row));
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    });
    count.textContent = shown === inOrder.length ? `${shown} rows` : `${shown} of ${inOrder.length} rows`;
  };
  filter.addEventListener("input", apply);
  apply();
});

each("[data-columns]", (fieldset) => {
  const group = fieldset.dataset.columns;
  fieldset.addEventListener("change", () => {
    const hidden = Array.from(fieldset.querySelectorAll("input:not(:checked)"));
    byId(`${group}-hidden`).textContent = hidden
      .map((box) => `#${group}-table :nth-child(${box.value}):is(th,td){display:none}`)
      .join("");
  });
});

// Answers of two strategies, with the words that differ.
if (byId("samples")) {
  const data = JSON.parse(byId("samples").textContent);
  const [left, right, search, differing] = ["left", "right", "search", "differing"].map(byId);
  const STEP = 10;
  let shown = STEP;
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const text = (row, prompt) => {
    const index = row.answers[prompt];
    return index === undefined ? "" : index < 0 ? "(failed)" : data.texts[index];
  };
  const fill = (select, rows) => {
    const groups = new Map();
    select.replaceChildren();
    rows.forEach(([row, index]) => {
      if (!groups.has(row.group)) {
        const group = element("optgroup");
        group.label = row.group;
        groups.set(row.group, group);
        select.append(group);
      }
      const option = element("option", row.name);
      option.value = index;
      groups.get(row.group).append(option);
    });
  };
  const all = data.rows.map((row, index) => [row, index]);
  // Only answers to the same prompts stand side by side.
  const fillRight = () => {
    const chosen = data.rows[left.value];
    const others = all.filter(([row]) => row.task === chosen.task);
    fill(right, others);
    const other = others.find(([row, index]) => index > left.value && row.group === chosen.group);
    right.value = (other || others[0])[1];
  };
  fill(left, all);
  const full = all.find(([row]) => row.is_full);
  left.value = (full || all[0])[1];
  fillRight();

  // Which words of two texts are not in their longest common subsequence.
  const differences = (a, b) => {
    const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
      }
    }
    const [inA, inB] = [new Set(a.keys()), new Set(b.keys())];
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) {
        inA.delete(i++);
        inB.delete(j++);
      } else if (length[i + 1][j] >= length[i][j + 1]) i++;
      else j++;
    }
    return [inA, inB];
  };
  const marked = (words, differ) => {
    const paragraph = element("p");
    words.forEach((word, index) => {
      paragraph.append(differ.has(index) ? element("mark", word) : word, " ");
    });
    if (!words.length) paragraph.append(element("small", "(empty)"));
    return paragraph;
  };
  const pair = (prompt) => {
    const rows = [data.rows[left.value], data.rows[right.value]];
    const task = data.tasks[rows[0].task];
    const made = element("article", "", "pair");
    made.append(element("p", `${task.ids[prompt]}: ${task.prompts[prompt]}`, "asked"));
    made.append(element("p", `Reference: ${task.references[prompt].join(" | ")}`, "asked"));
    const words = rows.map((row) => text(row, prompt).split(/\s+/).filter(Boolean).slice(0, 600));
    const differ = differences(words[0], words[1]);
    const both = element("div", "", "both");
    rows.forEach((row, index) => {
      const side = element("div");
      side.append(element("h4", row.name), marked(words[index], differ[index]));
      both.append(side);
    });
    made.append(both);
    return made;
  };
  const draw = () => {
    const rows = [data.rows[left.value], data.rows[right.value]];
    const task = data.tasks[rows[0].task];
    const wanted = search.value.toLowerCase();
    const prompts = task.ids.map((_, prompt) => prompt);
    const differs = (prompt) => rows[0].answers[prompt] !== rows[1].answers[prompt];
    const found = prompts.filter((prompt) => {
      const words = [task.ids[prompt], task.prompts[prompt], ...task.references[prompt], ...rows.map((row) => text(row, prompt))];
      return (!differing.checked || differs(prompt)) && words.join("\n").toLowerCase().includes(wanted);
    });
    byId("pairs").replaceChildren(...found.slice(0, shown).map(pair));
    const of = task.ids.length < task.all ? `the first ${task.ids.length} of ${task.all}` : `${task.all}`;
    byId("found").textContent = `${found.length} found; ${prompts.filter(differs).length} of ${of} prompts have answers that differ`;
    byId("more").hidden = found.length <= shown;
  };
  const again = () => {
    shown = STEP;
    draw();
  };
  left.addEventListener("change", () => {
    fillRight();
    again();
  });
  [right, differing].forEach((control) => control.addEventListener("change", again));
  search.addEventListener("input", again);
  byId("more").addEventListener("click", () => {
    shown += STEP;
    draw();
  });
  draw();
}

// On paper nothing is folded away.
let folded = [];
addEventListener("beforeprint", () => {
  folded = Array.from(document.querySelectorAll("details:not([open]):not(.columns)"));
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
