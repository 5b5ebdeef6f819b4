// node classify-file.js MODEL.onnx IMAGE.ppm: the same in Node.js, which has no decoder of images of its own.
// Any decoder will do that gives 8-bit RGB; a binary PPM needs none (ImageMagick: convert photo.jpg photo.ppm).
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import { classify, openModel } from "./classify.js";

/** Return the RGB bytes of a binary PPM (P6) with 8 bits a colour. */
function readPpm(path) {
  const bytes = new Uint8Array(readFileSync(path));
  const head = /^P6\s+(?:#.*\n)*(\d+)\s+(\d+)\s+255\s/.exec(new TextDecoder("latin1").decode(bytes.subarray(0, 1000)));
  if (!head) throw new Error(`${path} is not a binary PPM with 8 bits a colour`);
  const [width, height] = [Number(head[1]), Number(head[2])];
  const rgb = bytes.subarray(head[0].length);
  if (rgb.length !== height * width * 3) throw new Error(`${path} is truncated`);
  return { rgb, height, width };
}

const [modelPath, imagePath] = process.argv.slice(2);
if (!imagePath) {
  console.error("usage: node classify-file.js MODEL.onnx IMAGE.ppm");
  process.exit(2);
}
try {
  ort.env.wasm.numThreads = 1;
  const model = await openModel(ort, new Uint8Array(readFileSync(modelPath)));
  const { rgb, height, width } = readPpm(imagePath);
  for (const { name, probability } of await classify(model, rgb, height, width)) {
    console.log(`${(100 * probability).toFixed(2)} %  ${name}`);
  }
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
