"use strict";
(() => {
  const list = document.getElementById("cards");
  const cards = [...list.children];
  const control = (name) => document.getElementById(name);

  // Filters and sorts the cards.
  function arrange() {
    const order = Number(control("sort").value);
    const rank = (card) => Number(card.dataset.ranks.split(" ")[order]);
    cards.sort((one, other) => rank(one) - rank(other));
    list.replaceChildren(...cards);
    const fits = (card, name) => ["", card.dataset[name]].includes(control(name).value);
    for (const card of cards) {
      card.hidden = !(fits(card, "class") && fits(card, "matched"));
    }
    const shown = cards.filter((card) => !card.hidden).length;
    control("status").textContent = `${shown} of ${cards.length} objects shown`;
  }

  // Clips the masks of a card at its slider.
  function split(card) {
    const slider = card.querySelector("input");
    const svg = card.querySelector(".stage svg");
    const box = svg.viewBox.baseVal;
    const middle = box.x + (box.width * slider.value) / 100;
    const [left, right] = svg.querySelectorAll("clipPath rect");
    for (const [rect, start, end] of [[left, box.x, middle], [right, middle, box.x + box.width]]) {
      rect.setAttribute("x", start);
      rect.setAttribute("width", end - start);
      rect.setAttribute("y", box.y);
      rect.setAttribute("height", box.height);
    }
    const divider = svg.querySelector(".divider");
    for (const [name, value] of [["x1", middle], ["x2", middle], ["y1", box.y], ["y2", box.y + box.height]]) {
      divider.setAttribute(name, value);
    }
    const names = [...card.querySelectorAll(".side")].map((side) => side.textContent);
    slider.setAttribute("aria-valuetext", `${names[0]} up to ${slider.value} %, then ${names[1]}`);
  }

  // Puts the chosen masks on the two sides of a card.
  function compare(card) {
    const [left, right] = [control("left"), control("right")];
    for (const layer of card.querySelectorAll(".layer")) {
      const sides = [left, right].map((side) => side.value === layer.dataset.layer);
      const number = card.querySelector("clipPath").id.replace("left-", "");
      layer.classList.toggle("everywhere", sides[0] && sides[1]);
      if (sides[0] === sides[1]) {
        layer.removeAttribute("clip-path");
      } else {
        layer.setAttribute("clip-path", `url(#${sides[0] ? "left" : "right"}-${number})`);
      }
    }
    for (const side of [left, right]) {
      card.querySelector(`.side.${side.id}`).textContent = side.selectedOptions[0].text;
    }
    split(card);
  }

  // Zooms into a part of a card, or back to the full view.
  function enlarge(card, button) {
    const svg = card.querySelector(".stage svg");
    svg.setAttribute("viewBox", button.dataset.box);
    for (const other of card.querySelectorAll("button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    svg.classList.toggle("zoomed", button.previousElementSibling !== null);
    split(card);
  }

  function drag(card, event) {
    if (event.buttons & 1) {
      const area = event.currentTarget.getBoundingClientRect();
      card.querySelector("input").value = (100 * (event.clientX - area.left)) / area.width;
      split(card);
    }
  }

  for (const card of cards) {
    const stage = card.querySelector(".stage");
    card.querySelector("input").addEventListener("input", () => split(card));
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      drag(card, event);
    });
    stage.addEventListener("pointermove", (event) => drag(card, event));
    for (const button of card.querySelectorAll("button")) {
      button.addEventListener("click", () => enlarge(card, button));
    }
  }
  for (const name of ["class", "matched", "sort"]) {
    control(name).addEventListener("change", arrange);
  }
  for (const name of ["left", "right"]) {
    control(name).addEventListener("change", () => cards.forEach(compare));
  }
  const outline = control("outline");
  outline.addEventListener("change", () => list.classList.toggle("without-ground-truth", !outline.checked));

  cards.forEach(compare);
  arrange();
})();
