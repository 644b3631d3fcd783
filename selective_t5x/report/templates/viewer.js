'use strict';
(() => {
  const rows = JSON.parse(document.getElementById('masking-data').textContent);
  const get = (name) => document.getElementById('m-' + name);
  const state = {example: 0, layer: 0, query: 0, budget: '', heat: ''};
  const inflated = new Map();
  // min(F, 1) of each of the 256 levels of 1 - exp(-F).
  const counted = Float64Array.from(
    {length: 256}, (_, level) => Math.min(1, -Math.log(1 - level / 255)));
  let spans = [];
  // Of the layer and the cache shown; null while they are inflated.
  let masking = null;
  let evicted = null;
  let timer = null;

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream()
      .pipeThrough(new DecompressionStream('deflate'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // A layer's 1 - exp(-F), summed down the queries again, and its maps.
  async function layerOf(example, layer) {
    const key = example + '/' + layer;
    if (!inflated.has(key)) {
      const row = rows[example];
      const packed = row.layers[layer];
      const [f, on, off] = await Promise.all(
        [packed.masking, packed.on.data, packed.off.data].map(inflate));
      const length = row.tokens.length;
      for (let i = length; i < f.length; i++) f[i] += f[i - length];
      inflated.set(key, {f, on, off, size: packed.on.size});
    }
    return inflated.get(key);
  }

  // The query at which each key is evicted, layer by layer; none without a cache.
  async function evictedOf(example, budget) {
    if (!budget) return null;
    const key = example + '/cache/' + budget;
    if (!inflated.has(key)) {
      const bytes = await inflate(rows[example].evicted[budget]);
      inflated.set(key, new Uint16Array(bytes.buffer));
    }
    return inflated.get(key);
  }

  function option(select, value, text) {
    const made = document.createElement('option');
    made.value = value;
    made.textContent = text;
    select.append(made);
  }

  // Breaks and tabs with a sign before them, other controls as their pictures.
  function readable(token) {
    if (token === '') return '\u2205';
    return token.replace(/[\n\t]/g, (c) => (c === '\n' ? '\u21b5' : '\u2192') + c)
      .replace(/[\0-\x08\x0b-\x1f]/g,
        (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
  }

  function paint(canvas, levels, size) {
    canvas.width = canvas.height = size;
    const image = new ImageData(size, size);
    for (let i = 0; i < levels.length; i++) {
      image.data[4 * i] = levels[i];
      image.data[4 * i + 1] = Math.min(255, 1.3 * levels[i]);
      image.data[4 * i + 2] = 60 + 0.5 * levels[i];
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext('2d').putImageData(image, 0, 0);
  }

  // SSA's inverse temperatures in this layer, of what was chosen; or null.
  function heatsOf(row) {
    return state.heat ? row.temperatures[state.heat][state.layer] : null;
  }

  // Orange is hotter than plain attention, blue colder, twice or half is full.
  function showHeats() {
    const heats = heatsOf(rows[state.example]);
    spans.forEach((span, j) => {
      if (!heats) {
        span.style.backgroundColor = '';
        return;
      }
      const depth = Math.min(0.7, Math.abs(Math.log2(Math.max(heats[j], 0.01))));
      span.style.backgroundColor = heats[j] < 1 ?
        'rgb(255 140 30 / ' + depth + ')' : 'rgb(42 134 200 / ' + depth + ')';
    });
  }

  // Only what has changed is written to the page.
  function show() {
    const row = rows[state.example];
    const length = row.tokens.length;
    const first = state.layer * length;
    const start = state.query * length;
    let gone = 0;
    let seen = 0;
    for (let j = 0; j < length; j++) {
      let kind = '';
      let opacity = '';
      if (j > state.query) {
        kind = 'later';
      } else {
        if (j === state.query) kind = 'query';
        seen += 1 - counted[masking[start + j]];
        opacity = Math.max(0.08, 1 - masking[start + j] / 255).toFixed(2);
        if (evicted && evicted[first + j] <= state.query) {
          kind = 'gone';
          gone++;
        }
      }
      const span = spans[j];
      if (span.className !== kind) span.className = kind;
      if (span.style.opacity !== opacity) span.style.opacity = opacity;
    }
    const heats = heatsOf(row);
    get('layer').value = state.layer;
    get('layer-is').textContent = state.layer;
    get('query').value = state.query;
    get('query-is').textContent = state.query;
    get('says').textContent = 'Layer ' + state.layer + ', query ' +
      state.query + ' of ' + length + ': sees ' + seen.toFixed(1) + ' of ' +
      (state.query + 1) + ' tokens (' +
      (100 * seen / (state.query + 1)).toFixed(1) + ' %)' +
      (state.budget ? '; ' + (state.query + 1 - gone) + ' held, ' + gone +
        ' evicted' : '') + (heats ? '; its ' + state.heat +
        ' temperature is 1 / ' + heats[state.query] : '') + '.';
    // The box scrolls, the page does not.
    const box = get('tokens');
    const query = spans[state.query];
    const below = query.offsetTop - box.offsetTop - box.clientHeight / 2;
    if (box.scrollHeight > box.clientHeight) box.scrollTop = below;
    const at = 100 * (state.query + 0.5) / length + '%';
    for (const line of document.querySelectorAll('#masking .at')) {
      line.style.top = at;
    }
  }

  async function showLayer() {
    const {example, layer, budget} = state;
    masking = null;
    let found, queries;
    try {
      [found, queries] = await Promise.all(
        [layerOf(example, layer), evictedOf(example, budget)]);
    } catch (error) {
      get('says').textContent = 'This browser cannot inflate the data (' +
        error.message + '): one of 2023 or later can.';
      return;
    }
    // Another one was chosen meanwhile.
    if (example !== state.example || layer !== state.layer ||
        budget !== state.budget) return;
    masking = found.f;
    evicted = queries;
    paint(get('masking'), found.f, rows[example].tokens.length);
    paint(get('on'), found.on, found.size);
    paint(get('off'), found.off, found.size);
    showHeats();
    get('visible').querySelectorAll('li').forEach((item, i) => {
      item.className = i === layer ? 'chosen' : '';
    });
    show();
  }

  async function showExample() {
    const row = rows[state.example];
    state.layer = Math.min(state.layer, row.layers.length - 1);
    state.query = row.tokens.length - 1;
    get('layer').max = row.layers.length - 1;
    get('query').max = state.query;
    spans = row.tokens.map((token, j) => {
      const span = document.createElement('span');
      span.textContent = readable(token);
      span.addEventListener('click', () => move(j));
      return span;
    });
    get('tokens').replaceChildren(...spans);
    get('budget').replaceChildren();
    option(get('budget'), '', 'all keys');
    for (const budget of Object.keys(row.evicted)) {
      option(get('budget'), budget, budget + ' keys');
    }
    if (!(state.budget in row.evicted)) state.budget = '';
    get('budget').value = state.budget;
    const kinds = Object.keys(row.temperatures);
    get('heat').replaceChildren();
    option(get('heat'), '', 'none');
    for (const kind of kinds) option(get('heat'), kind, kind);
    if (!kinds.includes(state.heat)) state.heat = '';
    get('heat').value = state.heat;
    get('heat').parentElement.hidden = kinds.length === 0;
    get('visible').replaceChildren(...row.visible.map((share, layer) => {
      const item = document.createElement('li');
      const bar = document.createElement('span');
      bar.className = 'bar';
      bar.style.width = (60 * share).toFixed(1) + '%';
      item.append(bar, (100 * share).toFixed(1) + ' %');
      if (row.read) {
        item.append('; ' + (100 * row.read[layer]).toFixed(1) + ' % of pairs read');
      }
      return item;
    }));
    await showLayer();
  }

  function move(query) {
    const last = rows[state.example].tokens.length - 1;
    state.query = Math.max(0, Math.min(last, query));
    if (masking) show();
  }

  function setLayer(layer) {
    const last = rows[state.example].layers.length - 1;
    state.layer = Math.max(0, Math.min(last, layer));
    return showLayer();
  }

  function play() {
    if (timer !== null) {
      clearInterval(timer);
      timer = null;
    } else {
      const last = rows[state.example].tokens.length - 1;
      if (state.query === last) move(0);
      timer = setInterval(() => {
        move(state.query + 1);
        if (state.query === rows[state.example].tokens.length - 1) play();
      }, 120);
    }
    get('play').textContent = timer === null ? 'play' : 'stop';
  }

  const keys = {
    ArrowLeft: () => move(state.query - 1),
    ArrowRight: () => move(state.query + 1),
    ArrowUp: () => setLayer(state.layer - 1),
    ArrowDown: () => setLayer(state.layer + 1),
    Home: () => move(0),
    End: () => move(Infinity),
    ' ': play,
  };
  document.addEventListener('keydown', (event) => {
    // Controls have keys of their own.
    const own = event.target.matches('input, select, summary') ||
      (event.target.matches('button') && event.key === ' ');
    if (own || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  get('example').addEventListener('change', (event) => {
    state.example = Number(event.target.value);
    showExample();
  });
  get('budget').addEventListener('change', (event) => {
    state.budget = event.target.value;
    showLayer();
  });
  get('heat').addEventListener('change', (event) => {
    state.heat = event.target.value;
    showHeats();
    show();
  });
  get('layer').addEventListener('input',
    (event) => setLayer(Number(event.target.value)));
  get('query').addEventListener('input',
    (event) => move(Number(event.target.value)));
  get('back').addEventListener('click', () => move(state.query - 1));
  get('next').addEventListener('click', () => move(state.query + 1));
  get('play').addEventListener('click', play);
  rows.forEach((row, i) => option(get('example'), i,
    (row.model ? row.model + ', ' : '') + (i + 1) + ': ' +
      row.tokens.slice(0, 8).join('').slice(0, 40)));
  showExample();
})();
