// Switches panels and the gallery; without it the page shows everything at once.
(() => {
  'use strict';
  const all = (where, what) => [...where.querySelectorAll(what)];

  for (const select of all(document, 'select[data-panels]')) {
    const panels = all(select.closest('section'), '.panel');
    const show = () => panels.forEach((p, i) => { p.hidden = i !== select.selectedIndex; });
    select.addEventListener('change', show);
    show();
  }

  const root = document.getElementById('gallery');
  if (!root) return;
  const sets = all(root, '[data-set]');
  const cards = all(root, '.photo');
  const controls = Object.fromEntries(all(root, 'select[name]').map(s => [s.name, s]));
  const count = root.querySelector('output');

  // Photos and masks are in the page once; the views of the other runs get copies.
  for (const card of cards) {
    for (const empty of all(card, 'figure[data-copy]')) {
      const same = all(card, `figure[data-step="${empty.dataset.step}"] img`)[0];
      if (same) empty.prepend(same.cloneNode());
    }
    card.buttons = all(card, '.choices button');
    card.tiles = all(card, '.tiles');
    card.indices = card.dataset.classes.split(' ');
  }

  function steps(card) {
    return card.buttons.map(b => ({ step: b.dataset.step, kind: b.dataset.kind, title: b.textContent }));
  }

  // The CAM of the class that is filtered for, where a photo has several.
  function pick(card, kind) {
    const found = steps(card).filter(s => s.kind === kind);
    const wanted = controls.class.selectedOptions[0].dataset.name;
    return found.find(s => s.title === `CAM ${wanted}`) || found[0];
  }

  function split(card, at) {
    card.style.setProperty('--at', `${at}%`);
    for (const range of all(card, '.range')) range.value = at;
  }

  function draw(card, left, right) {
    for (const tiles of card.tiles) {
      for (const figure of all(tiles, 'figure')) {
        figure.classList.toggle('left', figure.dataset.step === left.step);
        figure.classList.toggle('right', figure.dataset.step === right.step);
      }
      tiles.querySelector('.tag.l').textContent = left.title;
      tiles.querySelector('.tag.r').textContent = right.title;
      tiles.querySelector('.range').setAttribute(
        'aria-label', `${card.dataset.id}: ${left.title} on the left, ${right.title} on the right`);
    }
    for (const button of card.buttons) {
      button.setAttribute('aria-pressed', String(button.dataset.step === right.step));
    }
  }

  function drawAll() {
    for (const card of cards) {
      const right = pick(card, controls.step.value) || steps(card).at(-1);
      const left = pick(card, controls.left.value) || steps(card)[0];
      draw(card, left, right);
    }
  }

  function filter() {
    const wanted = controls.class.value;
    let shown = 0, whole = 0;
    for (const set of sets) {
      set.hidden = set.dataset.set !== controls.set.value;
      for (const card of all(set, '.photo')) {
        card.hidden = wanted !== '' && !card.indices.includes(wanted);
        if (!set.hidden) { whole += 1; shown += !card.hidden; }
      }
    }
    count.textContent = shown === whole ? `${whole} photos` : `${shown} of ${whole} photos`;
  }

  // The state is in the address, so that a view can be kept or sent to somebody.
  function remember(at) {
    const state = new URLSearchParams({ set: controls.set.value });
    const chosen = controls.class.selectedOptions[0].dataset.name;
    if (chosen !== undefined) state.set('class', chosen);
    state.set('step', controls.step.value);
    state.set('left', controls.left.value);
    if (at !== undefined) state.set('at', at);
    try { history.replaceState(null, '', `#${state}`); } catch { /* not in this viewer */ }
  }

  function choose(select, value, key) {
    const option = [...select.options].find(o => (key ? o.dataset[key] : o.value) === value);
    if (option) select.value = option.value;
  }

  function restore() {
    if (!location.hash.includes('=')) return;
    const state = new URLSearchParams(location.hash.slice(1));
    choose(controls.set, state.get('set'));
    controls.step.value = first();
    choose(controls.class, state.get('class'), 'name');
    choose(controls.step, state.get('step'));
    choose(controls.left, state.get('left'));
    const at = Number(state.get('at') ?? NaN);
    if (at >= 0 && at <= 100) cards.forEach(card => split(card, at));
  }

  function first() {
    return sets.find(s => s.dataset.set === controls.set.value).dataset.first;
  }

  controls.set.addEventListener('change', () => { controls.step.value = first(); });
  for (const select of Object.values(controls)) {
    select.addEventListener('change', () => { filter(); drawAll(); remember(); });
  }
  root.addEventListener('input', event => {
    if (event.target.matches('.range')) split(event.target.closest('.photo'), event.target.value);
  });
  root.addEventListener('change', event => {
    if (event.target.matches('.range')) remember(event.target.value);
  });
  root.addEventListener('click', event => {
    const button = event.target.closest('.choices button');
    if (!button) return;
    const card = button.closest('.photo');
    const left = pick(card, controls.left.value) || steps(card)[0];
    draw(card, left, { step: button.dataset.step, title: button.textContent });
  });
  window.addEventListener('hashchange', () => { restore(); filter(); drawAll(); });

  cards.forEach(card => split(card, 50));
  controls.step.value = first();
  restore();
  filter();
  drawAll();
})();
