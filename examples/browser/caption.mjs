// Captions a picture with an exported captioner: greedily, with a key-value cache, as vlm_caption.runtime does.
// The libraries are passed in, so that the page and Node.js share this module.

const LARGEST_PICTURE = 2 ** 26; // pixels
const UNIT = 2 ** 22; // of weights of the resize

/** Fetches a file of the exported folder; `null` where there is none. */
async function read(folder, name) {
  const response = await fetch(new URL(name, folder));
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${name} cannot be read: the server answers ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}

async function readJson(folder, name) {
  const bytes = await read(folder, name);
  if (bytes === null) throw new Error(`${folder} is no exported captioner: it has no ${name}.`);
  return JSON.parse(new TextDecoder().decode(bytes));
}

async function openGraph(ort, folder, name, unpacked = [], options = {}) {
  const graph = await read(folder, name);
  if (graph === null) return null;
  const weights = await read(folder, `${name}.data`);
  const externalData = [...unpacked];
  if (weights !== null) externalData.push({ path: `${name}.data`, data: weights });
  return ort.InferenceSession.create(graph, { externalData, executionProviders: ["wasm"], ...options });
}

/** Computes the weights that `--quantize int4` stores in blocks. Optimised, it would take gigabytes of memory. */
async function unpackWeights(ort, folder) {
  const session = await openGraph(ort, folder, "blocks.onnx", [], { graphOptimizationLevel: "disabled" });
  if (session === null) return [];
  const outputs = await session.run({});
  const parts = session.outputNames.map((name) => outputs[name].data);
  const data = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    data.set(new Uint8Array(part.buffer, part.byteOffset, part.length), offset);
    offset += part.length;
  }
  await session.release();
  return [{ path: "blocks.onnx.unpacked", data }];
}

/** The filter of Pillow's BICUBIC, a = -0.5. */
function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

function bilinear(x) {
  return Math.max(0, 1 - Math.abs(x));
}

/**
 * Resizes one dimension as Pillow does, bit for bit: the filter widens where the picture shrinks, and weights have 22 bits.
 * `values` is [outer, size, inner].
 */
function resizeAlong(values, outer, size, inner, target, filter, radius) {
  const scale = Math.max(size / target, 1);
  const result = new Uint8ClampedArray(outer * target * inner);
  for (let place = 0; place < target; place++) {
    const centre = ((place + 0.5) * size) / target;
    const first = Math.max(0, Math.trunc(centre - radius * scale + 0.5));
    const end = Math.min(size, Math.trunc(centre + radius * scale + 0.5));
    const weights = [];
    for (let index = first; index < end; index++) weights.push(filter((index - centre + 0.5) * (1 / scale)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const whole = weights.map((weight) => Math.trunc((weight / total) * UNIT + 0.5 * Math.sign(weight)));
    for (let row = 0; row < outer; row++) {
      for (let column = 0; column < inner; column++) {
        let sum = UNIT / 2;
        for (let index = first; index < end; index++) {
          sum += whole[index - first] * values[(row * size + index) * inner + column];
        }
        result[(row * target + place) * inner + column] = Math.floor(sum / UNIT);
      }
    }
  }
  return result;
}

/** Turns RGBA pixels into pixel values [1, 3, H, W]; `settings` is "pixels" of captioner.json. */
export function toPixels({ data, width, height }, settings) {
  const [filter, radius] = { 2: [bilinear, 1], 3: [bicubic, 2] }[settings.resample] ?? [];
  if (filter === undefined) throw new Error(`The filter ${settings.resample} of Pillow is not among those of this page.`);
  if (settings.size?.length !== 2 || settings.crop) throw new Error("This page only resizes to a fixed height and width.");
  const [newHeight, newWidth] = settings.size;
  const narrow = resizeAlong(data, height, width, 4, newWidth, filter, radius);
  const small = resizeAlong(narrow, 1, height, newWidth * 4, newHeight, filter, radius);
  const count = newHeight * newWidth;
  const values = new Float32Array(3 * count);
  for (let pixel = 0; pixel < count; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = Math.fround(small[4 * pixel + channel] * settings.factor) - Math.fround(settings.mean[channel]);
      values[channel * count + pixel] = Math.fround(value) / Math.fround(settings.std[channel]);
    }
  }
  return { values, height: newHeight, width: newWidth };
}

/** The tokens that would complete a run of `size` tokens a second time. */
function repeating(tokens, size) {
  const banned = new Set();
  if (!size || tokens.length + 1 < size) return banned;
  const last = tokens.slice(tokens.length - size + 1).join();
  for (let start = 0; start + size <= tokens.length; start++) {
    if (tokens.slice(start, start + size - 1).join() === last) banned.add(tokens[start + size - 1]);
  }
  return banned;
}

/** An exported captioner. */
export class Captioner {
  /**
   * Loads a captioner.
   * @param ort onnxruntime-web, or another package with its interface.
   * @param Tokenizer of @huggingface/tokenizers.
   * @param folder The URL of the exported folder, with a slash at its end.
   */
  static async load(ort, Tokenizer, folder) {
    const captioner = new Captioner();
    captioner.ort = ort;
    captioner.settings = await readJson(folder, "captioner.json");
    captioner.tokenizer = new Tokenizer(await readJson(folder, "tokenizer.json"), {});
    captioner.vision = await openGraph(ort, folder, "vision.onnx");
    captioner.language = await openGraph(ort, folder, "language.onnx", await unpackWeights(ort, folder));
    return captioner;
  }

  /** The token ids of the default prompt, with a placeholder for each of the picture's tokens. */
  prompt() {
    const { markup, start_token: start, image_token: image, image_seq_length: count } = this.settings.prompt;
    if (markup.length !== 1) throw new Error("This captioner wants a question, and this page asks none.");
    const text = markup[0].replace(image, image.repeat(count));
    const whole = start && !text.startsWith(start) ? start + text : text;
    return this.tokenizer.encode(whole, { add_special_tokens: false }).ids;
  }

  /** Returns the caption of RGBA pixels: `{ data, width, height }`, as ImageData has them. */
  async caption(picture) {
    const { ort, settings } = this;
    if (picture.width * picture.height > LARGEST_PICTURE) throw new Error("The picture has too many pixels.");
    const { values, height, width } = toPixels(picture, settings.pixels);
    const pixels = new ort.Tensor("float32", values, [1, 3, height, width]);
    const { image_embeds: embeds } = await this.vision.run({ pixel_values: pixels });
    const text = this.tokenizer.decode(await this.write(embeds), { skip_special_tokens: true });
    return text.replace(/[\s\x1c-\x1f\x85]+/g, " ").trim(); // the spaces of Python
  }

  /** Writes greedily after a picture's tokens, and returns the new tokens without the end token. */
  async write(embeds) {
    const { ort, settings } = this;
    const { layers, heads, width } = settings.cache;
    const generation = settings.generation;
    const most = generation.max_new_tokens ?? 40;
    const integers = (numbers, shape) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), shape);
    const cache = {};
    for (let layer = 0; layer < layers; layer++) {
      for (const part of ["key", "value"]) {
        cache[`past.${layer}.${part}`] = new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
      }
    }
    let ids = this.prompt();
    let length = 0;
    let images = embeds;
    const written = [];
    while (written.length < most) {
      const positions = ids.map((_, index) => length + index);
      length += ids.length;
      const outputs = await this.language.run({
        input_ids: integers(ids, [1, ids.length]),
        image_embeds: images,
        attention_mask: integers(new Array(length).fill(1), [1, length]),
        position_ids: integers(positions, [1, ids.length]),
        rows: integers([0], [1]),
        keep: integers([1], [1]), // only the logits after the last token
        top: integers([most], [1]), // fewer tokens than that are banned
        ...cache,
      });
      const banned = repeating(written, generation.no_repeat_ngram_size ?? 0);
      const token = Array.from(outputs.top_ids.data, Number).find((candidate) => !banned.has(candidate));
      if (generation.eos_token_id.includes(token)) break;
      written.push(token);
      for (const name of Object.keys(cache)) cache[name] = outputs[name.replace("past", "present")];
      ids = [token];
      images = new ort.Tensor("float32", new Float32Array(0), [0, ...embeds.dims.slice(1)]);
    }
    return written;
  }
}
