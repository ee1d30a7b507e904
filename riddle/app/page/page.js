// The page of notebook 15: it shows the values of riddle.app.widgets.Page and tells them what the visitor chooses.
const MOST = 6e6;  // bytes of a photo; a larger one is reduced: a Jupyter server takes messages of 10 MB
const LONGEST = 2048;  // px a side of a reduced photo

const ANY = "or click to choose one";
const PAGE = `
  <div class="main">
    <section class="card"><h3>1 &nbsp;Choose a face<small>yours, or one of somebody who does not exist</small></h3>
      <div class="sources">
        <label class="drop"><b>Drop a photo here</b><span>${ANY}</span>
          <input type="file" accept="image/*" aria-label="Choose a photo"></label>
        <div class="gallery" role="group"></div>
      </div>
      <div class="message" role="alert"></div></section>
    <section class="card"><h3>2 &nbsp;Lock it<small>drag from one passphrase to the other</small></h3>
      <div class="words">
        <label class="word">First passphrase<input name="first"></label>
        <label class="way"><span></span><input name="position" type="range" min="0" max="1" step="0.01"></label>
        <label class="word">Second passphrase<input name="second"></label>
        <label class="word">Somebody's guess<input name="guess"></label>
      </div></section>
    <section class="card"><h3>3 &nbsp;Who is it now?<small class="recogniser"></small></h3>
      <div class="faces"></div></section>
  </div>
  <section class="card side"><h3>A wall of strangers<small>one face, sixteen random keys</small></h3>
    <img alt="One face under sixteen random keys"><p></p>
    <button class="others">Sixteen other keys</button></section>
  <dialog><form method="dialog"><button title="Close"></button></form></dialog>`;
const FACE = `<b></b><span></span><button class="face" title="Show it large"><img></button>
  <div class="bar"><div class="track"><i></i><u></u></div><span></span> <b></b></div>`;

async function reduced(file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: "from-image"});
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({type: "image/jpeg", quality: 0.95});
}

function made(kind, html = "") {
  const element = document.createElement(kind);
  element.innerHTML = html;
  return element;
}

function show(image, jpeg) {
  if (image.src) URL.revokeObjectURL(image.src);
  image.hidden = !jpeg?.byteLength;
  if (image.hidden) return image.removeAttribute("src");
  image.src = URL.createObjectURL(new Blob([jpeg], {type: "image/jpeg"}));
}

function render({model, el}) {
  el.classList.add("riddle");
  el.innerHTML = PAGE;
  const find = selector => el.querySelector(selector);
  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  const follow = (name, update) => {
    const now = () => update(model.get(name));
    model.on("change:" + name, now);
    now();
  };
  const text = (name, selector) => follow(name, value => { find(selector).textContent = value; });

  for (const name of ["first", "second", "guess", "position"]) {
    const field = find(`[name=${name}]`);
    field.addEventListener("change", () => set(name, name == "position" ? field.valueAsNumber : field.value));
    follow(name, value => { field.value = value; });
  }
  find("[name=position]").addEventListener("input", e => set("moving", e.target.valueAsNumber));
  follow("message", value => find(".message").classList.toggle("busy", value.endsWith("…")));
  text("pace", ".way span"); text("message", ".message"); text("count", ".side p"); text("recogniser", ".recogniser");
  follow("wall", jpeg => show(find(".side img"), jpeg));
  find(".others").addEventListener("click", () => model.send({others: true}));

  const gallery = find(".gallery");
  const mark = chosen => gallery.querySelectorAll("img").forEach(
    (image, i) => image.parentNode.setAttribute("aria-pressed", i == chosen));
  follow("choices", jpegs => {
    for (const image of gallery.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    gallery.replaceChildren(...jpegs.map((jpeg, i) => {
      const button = made("button", "<img>");
      show(button.firstChild, jpeg);
      button.title = button.firstChild.alt = `Face ${i + 1}`;
      button.addEventListener("click", () => set("chosen", i));
      return button;
    }));
    find(".others").disabled = !jpegs.length;
    if (jpegs.length && !model.get("wall")?.byteLength) model.send({rest: true});
    if (!jpegs.length) {
      const button = made("button", "Show the bundled faces");
      button.className = "bundled";
      button.addEventListener("click", () => {
        find(".drop span").textContent = ANY;
        model.send({bundled: true});
      });
      gallery.append(button);
    }
    mark(model.get("chosen"));
  });
  follow("chosen", mark);

  const faces = model.get("panels").map(([title, caption], i) => {
    const face = made("div", FACE), large = face.querySelector(".face");
    face.dataset.panel = title;
    [face.children[0].textContent, face.children[1].textContent, large.firstChild.alt] = [title, caption, title];
    large.addEventListener("click", () => model.send({large: i}));
    return face;
  });
  const dialog = find("dialog"), view = document.createElement("img");
  model.on("msg:custom", (content, buffers) => {
    if (!("large" in content)) return;
    show(view, buffers[0]);
    view.alt = faces[content.large].dataset.panel;
    dialog.querySelector("button").replaceChildren(view);
    if (!dialog.open) dialog.showModal();
  });
  find(".faces").append(...faces);
  follow("faces", jpegs => faces.forEach((face, i) => show(face.querySelector("img"), jpegs[i])));
  follow("bars", bars => faces.forEach((face, i) => {
    const {share, same, said, verdict, old} = bars[i] ?? {share: null, same: false, said: "", verdict: ""};
    const bar = face.lastChild, [track, number, word] = bar.children;
    bar.classList.toggle("same", same);
    face.classList.toggle("old", !!old);  // of the slider's former place
    track.hidden = share === null;
    track.firstChild.style.width = `${100 * share}%`;
    [number.textContent, word.textContent] = [said, verdict];
  }));

  const drop = find(".drop"), file = find(".drop input"), note = find(".drop span");
  async function send(photo) {
    if (!photo) return;
    try {
      const blob = photo.size > MOST ? await reduced(photo) : photo;
      model.send({name: photo.name}, undefined, [await blob.arrayBuffer()]);  // a message: no notebook stores it
      note.textContent = photo.name;
    } catch (e) { note.textContent = photo.name + " cannot be read"; }
  }
  file.addEventListener("change", () => { send(file.files[0]); file.value = ""; });
  for (const kind of ["dragenter", "dragover"])
    drop.addEventListener(kind, e => { e.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", e => {
    e.preventDefault(); e.stopPropagation(); drop.classList.remove("over"); send(e.dataTransfer.files[0]);
  });
}

export default {render};
