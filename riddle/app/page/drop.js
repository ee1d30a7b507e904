// Where a photo is dropped, or chosen from disk. It is sent as a message, so that no notebook stores it.
// A message of a Jupyter server is at most 10 MB: a larger photo is reduced before it is sent.
const MOST = 6e6, LONGEST = 2048;
async function reduced(file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: "from-image"});
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({type: "image/jpeg", quality: 0.95});
}
function render({model, el}) {
  const zone = document.createElement("label"), input = document.createElement("input");
  const title = document.createElement("b"), note = document.createElement("span");
  zone.className = "riddle-drop";
  input.type = "file"; input.accept = "image/*"; input.setAttribute("aria-label", "Choose a photo");
  title.textContent = "Drop a photo here"; note.textContent = "or click to choose one";
  zone.append(title, note, input); el.append(zone);
  async function send(file) {
    if (!file) return;
    try {
      const blob = file.size > MOST ? await reduced(file) : file;
      model.send({name: file.name}, undefined, [await blob.arrayBuffer()]);
      note.textContent = file.name;
    } catch (e) { note.textContent = file.name + " cannot be read"; }
  }
  input.addEventListener("change", () => { send(input.files[0]); input.value = ""; });
  for (const kind of ["dragenter", "dragover"])
    zone.addEventListener(kind, e => { e.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", e => {
    e.preventDefault(); e.stopPropagation(); zone.classList.remove("over"); send(e.dataTransfer.files[0]);
  });
}
export default {render};
