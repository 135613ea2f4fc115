"use strict";
// YOLOv3-tiny in a web page: Darknet's own two files become a chain of TensorFlow.js operations, and pixels become
// detections. The arithmetic is that of labsupport's darknet.py, runtimes.py and detection.py, under the same names.
// Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018.

const SIZE = 416;  // the network looks at 416 x 416 pixels, whatever the picture's size
const HEADER_BYTES = 20;  // of the weights file: three int32 for the version, one int64 for the pictures seen in training
const EPSILON = 1e-6;  // Darknet's batch-norm epsilon
const NMS_OVERLAP = 0.3;  // of two boxes that overlap more than this (IoU), the less sure one is dropped

class Detector {
  // cfg: text; weights: ArrayBuffer, its checksum known to be right; labels: the classes in the order of the outputs
  constructor(cfg, weights, labels) {
    const sections = parse(cfg);
    this.labels = labels;
    this.anchors = sections.filter(({kind}) => kind === "yolo").map(({options}) => anchors(options));
    this.layers = build(sections.slice(1), new Float32Array(weights, HEADER_BYTES));  // behind [net], about training
  }

  // pixels: an ImageData -> the raw outputs of each [yolo] section: {rows, columns, values of rows x columns x 3 x 85}
  async forward(pixels) {
    const heads = tf.tidy(() => {
      const outputs = [], found = [];
      let x = tf.tensor4d(squeeze(pixels), [1, SIZE, SIZE, 3]);
      for (const {kind, run} of this.layers) {
        x = run(x, outputs);
        outputs.push(x);
        if (kind === "yolo") found.push(x);
      }
      return found;
    });
    const values = await Promise.all(heads.map(head => head.data()));
    tf.dispose(heads);
    return heads.map(({shape}, i) => ({rows: shape[1], columns: shape[2], values: values[i]}));
  }

  // raw outputs -> [{label, confidence, box}], the surest first, each with more than `confidence`; boxes in whole pixels
  select(heads, confidence, width, height) {
    const boxes = heads.flatMap((head, i) => decode(head, this.anchors[i], confidence, width, height));
    boxes.sort((a, b) => b.confidence - a.confidence);
    const kept = [];
    for (const box of boxes) if (kept.every(other => overlap(box, other) <= NMS_OVERLAP)) kept.push(box);
    const within = (value, most) => Math.min(Math.max(Math.trunc(value), 0), most);
    return kept.map(({label, confidence, left, top, wide, high}) => ({label: this.labels[label], confidence, box: {
      left: within(left, width), top: within(top, height),
      right: within(left + wide, width), bottom: within(top + high, height),
    }}));
  }

  dispose() { for (const {weights} of this.layers) tf.dispose(weights); }
}

// the sections of a Darknet cfg, in order: [{kind, options}]
function parse(cfg) {
  const sections = [];
  for (let line of cfg.split("\n")) {
    line = line.split("#")[0].trim();
    if (line.startsWith("[")) sections.push({kind: line.slice(1, -1), options: {}});
    else if (line) {
      const [key, value] = line.split("=");
      sections.at(-1).options[key.trim()] = value.trim();
    }
  }
  return sections;
}

const numbers = text => text.split(",").map(Number);

// the anchor boxes that a [yolo] section uses: [[width, height], ...] in pixels of the network's input
function anchors(options) {
  const all = numbers(options.anchors);
  return numbers(options.mask).map(i => all.slice(2 * i, 2 * i + 2));
}

// each layer is a function from what came before it, and from all earlier outputs; the weights follow in the same order
function build(sections, floats) {
  const layers = [];
  let used = 0;
  const take = (...shape) => {
    const count = shape.reduce((a, b) => a * b);
    if (used + count > floats.length) throw new Error("the weights file is shorter than the cfg asks for");
    used += count;
    return tf.tensor(floats.subarray(used - count, used), shape);
  };
  for (const {kind, options} of sections) {
    if (!(kind in LAYERS)) throw new Error(`a [${kind}] section: only the layers of YOLOv3-tiny are known here`);
    const channels = layers.length ? layers.at(-1).channels : 3;
    layers.push({kind, channels, ...LAYERS[kind](options, channels, take, layers)});
  }
  if (used !== floats.length) throw new Error("the weights file holds more numbers than the cfg asks for");
  return layers;
}

const LAYERS = {
  // bias, batch norm and kernel stand in the file in this order; batch norm is folded into kernel and bias
  convolutional(options, channels, take) {
    const filters = Number(options.filters), size = Number(options.size), activation = options.activation === "leaky" ? "leakyrelu" : "linear";
    const [kernel, bias] = tf.tidy(() => {
      let bias = take(filters), scale = tf.scalar(1);
      if (options.batch_normalize === "1") {
        const [gamma, mean, variance] = [take(filters), take(filters), take(filters)];
        scale = tf.div(gamma, tf.sqrt(tf.add(variance, EPSILON)));
        bias = tf.sub(bias, tf.mul(mean, scale));
      }
      return [tf.mul(tf.transpose(take(filters, channels, size, size), [2, 3, 1, 0]), scale), bias];
    });
    const run = x => tf.fused.conv2d({x, filter: kernel, bias, strides: Number(options.stride), pad: "same", activation, leakyreluAlpha: 0.1});
    return {run, channels: filters, weights: [kernel, bias]};
  },
  // "same" pads on the right and below only, as Darknet does where size is 2 and stride 1
  maxpool: options => ({run: x => tf.maxPool(x, Number(options.size), Number(options.stride), "same")}),
  upsample: options => ({run: x => tf.image.resizeNearestNeighbor(x, x.shape.slice(1, 3).map(side => side * options.stride))}),
  route(options, _, take, layers) {
    const sources = numbers(options.layers);  // below 0: counted back from here
    const channels = sources.reduce((sum, i) => sum + layers.at(i).channels, 0);
    return {run: (x, outputs) => tf.concat(sources.map(i => outputs.at(i)), 3), channels};
  },
  yolo: () => ({run: x => tf.clone(x)}),
};

// an ImageData of any size -> 416 x 416 x 3 floats, red green blue, 0 to 1. Bilinear, pixels' centres on pixels' centres,
// and in whole numbers as OpenCV's resize does it: its shares are 2048ths, and what it cuts off we cut off
function squeeze({data, width, height}) {
  const across = places(width), squeezed = new Float32Array(SIZE * SIZE * 3);
  let at = 0;
  for (const [top, bottom, up, down] of places(height)) for (const [left, right, near, far] of across) {
    const a = 4 * (top * width + left), b = 4 * (top * width + right);
    const c = 4 * (bottom * width + left), d = 4 * (bottom * width + right);
    for (let channel = 0; channel < 3; channel++) {
      const above = (data[a + channel] * near + data[b + channel] * far) >> 4;
      const below = (data[c + channel] * near + data[d + channel] * far) >> 4;
      squeezed[at++] = ((((above * up) >> 16) + ((below * down) >> 16) + 2) >> 2) / 255;
    }
  }
  return squeezed;
}

// for each of the 416: between which two of `side` pixels it lies, and the share of either in 2048ths
function places(side) {
  const within = place => Math.min(Math.max(place, 0), side - 1);
  return Array.from({length: SIZE}, (_, i) => {
    const place = Math.fround((i + 0.5) * side / SIZE - 0.5), first = Math.floor(place), share = place - first;
    return [within(first), within(first + 1), even(2048 * (1 - share)), even(2048 * share)];
  });
}

const even = x => x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);  // a half goes to the even neighbour

const sigmoid = x => 0.5 + 0.5 * Math.tanh(0.5 * x);

// the boxes of one output that are sure enough. Each cell predicts three: an offset in the cell, a size as a multiple of
// an anchor, an objectness, and 80 class probabilities (section 2.1)
function decode({rows, columns, values}, anchors, confidence, width, height) {
  const found = [], step = values.length / (rows * columns * anchors.length);
  for (let cell = 0; cell < rows * columns; cell++) anchors.forEach(([anchorWidth, anchorHeight], which) => {
    const raw = values.subarray((cell * anchors.length + which) * step, (cell * anchors.length + which + 1) * step);
    const objectness = sigmoid(raw[4]);
    if (objectness <= confidence) return;
    const scores = Array.from(raw.subarray(5), score => objectness * sigmoid(score));
    const best = Math.max(...scores);
    if (best <= confidence) return;
    const wide = Math.trunc(Math.exp(raw[2]) * anchorWidth / SIZE * width);  // whole pixels, as detection.py cuts them off
    const high = Math.trunc(Math.exp(raw[3]) * anchorHeight / SIZE * height);
    const left = Math.trunc((sigmoid(raw[0]) + cell % columns) / columns * width) - wide / 2;
    const top = Math.trunc((sigmoid(raw[1]) + Math.floor(cell / columns)) / rows * height) - high / 2;
    found.push({label: scores.indexOf(best), confidence: best, left, top, wide, high});
  });
  return found;
}

// intersection over union; of two boxes without any area it is 1, as for OpenCV's NMSBoxes
function overlap(a, b) {
  const wide = Math.min(a.left + a.wide, b.left + b.wide) - Math.max(a.left, b.left);
  const high = Math.min(a.top + a.high, b.top + b.high) - Math.max(a.top, b.top);
  const shared = Math.max(wide, 0) * Math.max(high, 0), areas = a.wide * a.high + b.wide * b.high;
  return areas > 0 ? shared / (areas - shared) : 1;
}
