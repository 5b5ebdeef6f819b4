// Classify an image with an ONNX file of resnext that contains its preprocessing (export.input=image).
// The same code runs in the browser and in Node.js; `ort` is the module onnxruntime-web.

/** Open the file's bytes (Uint8Array): a session, and the manifest from the file's metadata. */
export async function openModel(ort, bytes) {
  const manifest = readManifest(bytes);
  if (manifest.artefact.input !== "image") {
    throw new Error("this file does not resize images; export it with --set export.input=image");
  }
  return { ort, manifest, session: await ort.InferenceSession.create(bytes) };
}

/** Return the `count` most probable classes of `rgb` (Uint8Array, height * width * 3): [{name, probability}]. */
export async function classify(model, rgb, height, width, count = 3) {
  const images = new model.ort.Tensor("uint8", rgb, [1, height, width, 3]);
  const { logits } = await model.session.run({ images });
  const probabilities = softmax(Array.from(logits.data));
  return probabilities
    .map((probability, index) => ({ name: model.manifest.classes[index], probability }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, count);
}

/** Return RGB bytes of a canvas's RGBA bytes. */
export function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

function softmax(values) {
  const largest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/**
 * Return the manifest (JSON) of an ONNX file. onnxruntime-web does not give a file's metadata, so it is read from the
 * protobuf message itself: field 14 of ModelProto, entries of key (1) and value (2).
 */
export function readManifest(bytes) {
  const text = new TextDecoder();
  for (const entry of fields(bytes, 14)) {
    const [key] = fields(entry, 1);
    const [value] = fields(entry, 2);
    if (key && value && text.decode(key) === "resnext") return JSON.parse(text.decode(value));
  }
  throw new Error("this file has no resnext manifest; write it with resnext-run export");
}

/** Return the byte strings of a field of a protobuf message. */
function fields(bytes, wanted) {
  const found = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length) throw new Error("this is not an ONNX file, or it is truncated");
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const type = tag % 8;
    if (type === 0) varint();
    else if (type === 2) {
      const length = varint();
      if (Math.floor(tag / 8) === wanted) found.push(bytes.subarray(at, at + length));
      at += length;
    } else if (type === 1 || type === 5) at += type === 1 ? 8 : 4;
    else throw new Error("this is not an ONNX file");
    if (at > bytes.length) throw new Error("this is not an ONNX file, or it is truncated");
  }
  return found;
}
