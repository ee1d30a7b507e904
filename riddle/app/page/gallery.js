// The faces to choose from: model.pictures, each a JPEG; model.chosen is the number of one.
function render({model, el}) {
  const row = document.createElement("div");
  row.className = "riddle-gallery"; row.setAttribute("role", "group"); el.append(row);
  function mark() {
    [...row.children].forEach((b, i) => b.setAttribute("aria-pressed", i === model.get("chosen")));
  }
  function fill() {
    for (const image of row.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    row.replaceChildren(...model.get("pictures").map((bytes, i) => {
      const button = document.createElement("button"), image = document.createElement("img");
      image.src = URL.createObjectURL(new Blob([bytes], {type: "image/jpeg"}));
      image.alt = "Face " + (i + 1); button.title = image.alt; button.append(image);
      button.addEventListener("click", () => { model.set("chosen", i); model.save_changes(); });
      return button;
    }));
    mark();
  }
  model.on("change:pictures", fill); model.on("change:chosen", mark); fill();
}
export default {render};
