// Holes as they are painted: strokes in coordinates of the picture, over a mask that was loaded.
// A hole is opaque, all else transparent, until the mask is sent or saved: there a hole is black.

export function stroke(context, { points, size, erase }, colour) {
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  context.strokeStyle = colour;
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(points[0], points[1]);
  if (points.length === 2) context.lineTo(points[0] + 0.01, points[1]);
  for (let i = 2; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
  context.stroke();
  context.globalCompositeOperation = "source-over";
}

export function paint(context, { loaded, strokes }, colour) {
  if (loaded) context.drawImage(loaded, 0, 0);
  for (const one of strokes) stroke(context, one, colour);
}

// An opaque hole wherever one of the holes is, in the picture's size.
function drawn(holes, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (const one of holes) {
    const layer = new OffscreenCanvas(width, height);
    paint(layer.getContext("2d"), one, "#000");
    context.drawImage(layer, 0, 0);
  }
  return [canvas, context];
}

// The mask as a PNG: black = hole, white = valid, no grey; null where there is no hole.
export async function toMask(holes, width, height) {
  const [canvas, context] = drawn(holes, width, height);
  const rows = Math.max(1, Math.floor(2 ** 22 / width)); // at a time, for little memory
  let any = false;
  for (let top = 0; top < height; top += rows) {
    const part = context.getImageData(0, top, width, Math.min(rows, height - top));
    const values = new Uint32Array(part.data.buffer);
    for (let i = 0; i < values.length; i++) {
      const hole = values[i] >>> 24 > 127;
      any ||= hole;
      values[i] = hole ? 0xff000000 : 0xffffffff;
    }
    context.putImageData(part, 0, top);
  }
  return any ? canvas.convertToBlob({ type: "image/png" }) : null;
}

// A mask's picture as opaque holes: dark or transparent is a hole; where it has transparent parts, they alone.
export async function fromMask(blob, width, height) {
  const bitmap = await createImageBitmap(blob);
  if (bitmap.width !== width || bitmap.height !== height) {
    throw Error(`The mask is ${bitmap.width} x ${bitmap.height}, the picture ${width} x ${height}.`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const image = context.getImageData(0, 0, width, height);
  const data = image.data;
  let least = 255, most = 0;
  for (let i = 3; i < data.length; i += 4) {
    least = Math.min(least, data[i]);
    most = Math.max(most, data[i]);
  }
  for (let i = 0; i < data.length; i += 4) {
    const grey = least < most ? data[i + 3] : 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
    data.set([255, 45, 85, grey > 127 ? 0 : 255], i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export function inverted(holes, width, height, colour) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(drawn([holes], width, height)[0], 0, 0);
  return canvas;
}
