// What part of the picture is seen, and how pointers and wheels move it.

export class View {
  scale = 1;
  x = 0; // of the picture's corner, in CSS pixels of the element
  y = 0;

  constructor(element, changed) {
    this.element = element;
    this.changed = changed;
    this.size = [0, 0];
    element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    new ResizeObserver(() => {
      if (this.fitted) this.fit();
      else changed();
    }).observe(element);
  }

  show(width, height) {
    this.size = [width, height];
    this.fit();
  }

  fit() {
    const [width, height] = this.size, { clientWidth, clientHeight } = this.element;
    if (!width) return this.changed();
    this.scale = Math.min(clientWidth / width, clientHeight / height);
    this.x = (clientWidth - width * this.scale) / 2;
    this.y = (clientHeight - height * this.scale) / 2;
    this.fitted = true;
    this.changed();
  }

  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const scale = Math.min(32, Math.max(0.01, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.changed();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.changed();
  }

  // In CSS pixels of the element, and in the picture.
  inElement(event) {
    const box = this.element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  inPicture(event) {
    const [x, y] = this.inElement(event);
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    if (event.shiftKey) this.move(-event.deltaY * lines, 0);
    else this.zoom(Math.exp((-event.deltaY * lines) / 400), ...this.inElement(event));
  }
}
