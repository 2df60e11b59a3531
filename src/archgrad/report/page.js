(() => {
  "use strict";
  const root = document.documentElement;
  const KEY = "archgrad-theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // A page opened from a file may be refused its storage; the theme is then not remembered.
  const stored = (...value) => {
    try {
      if (!value.length) return localStorage.getItem(KEY);
      if (value[0]) localStorage.setItem(KEY, value[0]);
      else localStorage.removeItem(KEY);
    } catch { /* not remembered */ }
    return null;
  };
  const system = () => (dark.matches ? "dark" : "light");
  const wear = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  wear(stored());

  const themeButton = () => {
    const button = document.getElementById("theme");
    const other = () => ((root.dataset.theme || system()) === "dark" ? "light" : "dark");
    const tell = () => { button.textContent = other() === "dark" ? "Dark theme" : "Light theme"; };
    button.hidden = false;
    tell();
    button.addEventListener("click", () => {
      const theme = other() === system() ? null : other();
      stored(theme);
      wear(theme);
      tell();
    });
    dark.addEventListener("change", tell);
  };

  // The points of a picture: under the pointer, by touch, or by the arrow keys.
  const places = new Map();
  const points = (plot) => {
    const spots = JSON.parse(plot.dataset.spots);
    const box = plot.querySelector("svg").viewBox.baseVal;
    const cursor = document.createElement("div");
    const dot = document.createElement("div");
    const tip = document.createElement("div");
    [cursor.className, dot.className, tip.className] = ["cursor", "dot", "tip"];
    cursor.id = `${plot.id}-cursor`;
    cursor.tabIndex = 0;
    dot.hidden = tip.hidden = true;
    const told = { role: "slider", "aria-label": `Points: ${plot.dataset.name}`, "aria-valuemin": 1,
      "aria-valuemax": spots.length };
    for (const [name, value] of Object.entries(told)) cursor.setAttribute(name, value);
    let at = Math.min(places.get(cursor.id) ?? 0, spots.length - 1);

    const mark = () => {
      cursor.setAttribute("aria-valuenow", at + 1);
      cursor.setAttribute("aria-valuetext", spots[at][3]);
      places.set(cursor.id, at);
    };
    const show = (index) => {
      at = index;
      mark();
      const [x, y, , text] = spots[at];
      const [left, top] = [(100 * x) / box.width, (100 * y) / box.height];
      dot.style.left = `${left}%`;
      dot.style.top = `${top}%`;
      tip.textContent = text;
      const right = left > 50;
      tip.style.left = right ? "auto" : `calc(${left}% + 8px)`;
      tip.style.right = right ? `calc(${100 - left}% + 8px)` : "auto";
      tip.style.maxWidth = `min(22rem, calc(${right ? left : 100 - left}% - 8px))`;
      tip.style.top = top > 50 ? "auto" : `calc(${top}% + 8px)`;
      tip.style.bottom = top > 50 ? `calc(${100 - top}% + 8px)` : "auto";
      dot.hidden = tip.hidden = false;
    };
    const hide = () => { dot.hidden = tip.hidden = true; };
    const nearest = (x, y, line) => {
      let best = at, least = Infinity;
      spots.forEach((spot, index) => {
        if (line !== undefined && spot[2] !== line) return;
        const far = (spot[0] - x) ** 2 + 0.3 * (spot[1] - y) ** 2;
        if (far < least) [best, least] = [index, far];
      });
      return best;
    };
    const under = (event) => {
      const area = cursor.getBoundingClientRect();
      const x = ((event.clientX - area.left) / area.width) * box.width;
      show(nearest(x, ((event.clientY - area.top) / area.height) * box.height));
    };
    const lines = [...new Set(spots.map((spot) => spot[2]))];
    const beside = (step) => {
      const line = lines[(lines.indexOf(spots[at][2]) + step + lines.length) % lines.length];
      return nearest(spots[at][0], spots[at][1], line);
    };
    const last = spots.length - 1;
    const keys = {
      ArrowLeft: () => Math.max(at - 1, 0), ArrowRight: () => Math.min(at + 1, last),
      PageDown: () => Math.max(at - 10, 0), PageUp: () => Math.min(at + 10, last),
      Home: () => 0, End: () => last, ArrowUp: () => beside(-1), ArrowDown: () => beside(1),
    };
    cursor.addEventListener("pointermove", under);
    cursor.addEventListener("pointerdown", under);
    cursor.addEventListener("pointerleave", () => { if (document.activeElement !== cursor) hide(); });
    cursor.addEventListener("focus", () => show(at));
    cursor.addEventListener("blur", hide);
    cursor.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      show(keys[event.key]());
    });
    mark();
    plot.append(dot, tip, cursor);
  };
  const dress = (part) => {
    part.querySelectorAll(".plot[data-spots]").forEach(points);
    part.querySelectorAll(".scroll[tabindex]").forEach((one) => {
      if (one.scrollWidth <= one.clientWidth && one.clientWidth) one.removeAttribute("tabindex");
    });
  };

  // The board: what has changed is put in place of what was there; reader's place, open parts and focus stay.
  let tag = null;
  let last = new Map();
  const sections = (page) => [...page.querySelectorAll("[data-part]")];
  const source = (page) => new Map(sections(page).map((part) => [part.id, part.outerHTML]));
  const put = (page) => {
    const fresh = source(page);
    const seen = sections(document).find((part) => part.getBoundingClientRect().bottom > 0);
    const place = seen && [seen.id, seen.getBoundingClientRect().top];
    const focus = document.activeElement && document.activeElement.id;
    const inside = focus && document.activeElement.closest("[data-part]");
    let before = null;
    for (const part of sections(page)) {
      const old = document.getElementById(part.id);
      let now = old;
      if (!old || last.get(part.id) !== fresh.get(part.id)) {
        now = document.importNode(part, true);
        if (old) {
          for (const details of now.querySelectorAll("details[id]")) {
            const was = document.getElementById(details.id);
            if (was) details.open = was.open;
          }
          const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
          old.replaceWith(now);
          now.querySelectorAll(".scroll").forEach((one, k) => { one.scrollLeft = scrolled[k] || 0; });
        } else if (before) before.after(now);
        else document.querySelector("main").prepend(now);
        dress(now);
      }
      before = now;
    }
    for (const part of sections(document)) if (!fresh.has(part.id)) part.remove();
    last = fresh;
    root.dataset.state = page.documentElement.dataset.state;
    document.title = page.title;
    const again = inside && !inside.isConnected && document.getElementById(focus);
    if (again) again.focus({ preventScroll: true });
    const kept = place && document.getElementById(place[0]);
    if (kept) scrollBy({ top: kept.getBoundingClientRect().top - place[1], behavior: "instant" });
  };
  const poll = async (wait) => {
    const lost = document.getElementById("lost");
    try {
      if (!document.hidden) {
        const headers = tag ? { "If-None-Match": tag } : {};
        const answer = await fetch(location.pathname, { headers, cache: "no-store" });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          put(new DOMParser().parseFromString(await answer.text(), "text/html"));
        }
        lost.hidden = answer.ok || answer.status === 304;
      }
    } catch {
      lost.hidden = false;
    }
    setTimeout(poll, root.dataset.state === "finished" ? 5 * wait : wait, wait);
  };

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    last = source(document);
    dress(document);
    const wait = Number(root.dataset.live);
    if (wait) setTimeout(poll, wait, wait);
  });
})();
