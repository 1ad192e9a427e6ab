// Reads a packed sheet, which is one PMTiles file, by range requests to the bucket or to SiteLink, or from a Blob, and gives it to OpenSeadragon.
// The format: https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md
//
// 1. Range requests pass by the browser's cache. There, the requests for one address wait for each other:
//    https://www.chromium.org/developers/design-documents/network-stack/http-cache/. 60 ranges at 50 ms take 3.1 s in Chromium by its cache, 0.9 s
//    past it. The newest tiles are kept here instead.
// 2. OpenSeadragon knows a tile by a name that is no address: it writes the names of lost tiles to the console, and an address may be signed.

import { Problem, sender, tileLoading } from "./sitelink.js";

const HEADER_BYTES = 127;
const FIRST_BYTES = 32_768; // the header and the root directory, which are less than 16 KiB, and with them the metadata
const PIECE_LIMIT_BYTES = 16 << 20; // of a directory or a tile
const LIMIT_MS = 30_000;
const KEPT_BYTES = 8 << 20;
const MAX_LEVEL = 26; // up to here JavaScript's numbers of tiles are exact
const MAX_DEPTH = 4; // of directories; writers make two
const SCHEMA = 1;
const MAGIC = "PMTiles";
const [NOT_COMPRESSED, GZIP] = [1, 2];
const JPEG = 3;

const damaged = (detail) => new Problem("DamagedRecord", `The packed sheet cannot be read: ${detail}.`, 200);
const foreign = (detail) => new Problem("NotAPackedSheet", `The file is not a packed sheet: ${detail}.`, 200);

/** SiteLink's refusals are JSON, those of buckets are not. */
const refusal = (status, text) =>
  text.startsWith("{") ? Problem.from(status, text) : new Problem(`HTTP ${status}`, `The server did not give the packed sheet: HTTP status ${status}.`, status);

let opened = 0; // sources, so that OpenSeadragon's cache tells their tiles apart

export async function packedTileSource(source, { signal, ref = "", ...access } = {}) {
  const sheet = new PackedSheet(source instanceof Blob ? blobReader(source) : addressReader(source, access, ref));
  const { metadata } = await within(signal, sheet.index());
  const name = `sitelink-packed:${++opened}`;
  return {
    width: metadata.width,
    height: metadata.height,
    tileSize: metadata.tileSize,
    tileOverlap: metadata.overlap,
    minLevel: 0,
    maxLevel: maxLevelOf(metadata),
    metadata,
    getTileUrl: (level, column, row) => `${name}/${level}/${column}_${row}`,
    ...tileLoading(async (url, signal) => new Blob([await sheet.tile(...url.split(/[/_]/).slice(-3).map(Number), signal)], { type: "image/jpeg" })),
  };
}

const maxLevelOf = ({ width, height }) => Math.ceil(Math.log2(Math.max(width, height)));

// Bytes. A reader gives {bytes, size, etag} of a range: the file's size and version, where they are known. A range may reach beyond the file.

function blobReader(blob) {
  return async (offset, length) => {
    try {
      return { bytes: await blob.slice(offset, offset + length).arrayBuffer(), size: blob.size, etag: null };
    } catch (error) {
      throw new Problem("FileUnreadable", `The file can no longer be read: ${error.message}`, 200); // the person has moved or changed it
    }
  };
}

function addressReader(source, access, ref) {
  const isSigned = typeof source === "function"; // gives a new address when the old one has expired
  const send = isSigned ? sender({ address: source }, ref) : sender({ ...access, url: source }, ref);
  return async (offset, length, signal) => {
    const response = await send({ headers: { Range: `bytes=${offset}-${offset + length - 1}` }, cache: "no-store", signal });
    if (response.status === 416) return { bytes: new ArrayBuffer(0), size: 0, etag: null };
    if (response.status !== 206) {
      if (!response.ok) throw refusal(response.status, await response.text());
      response.body?.cancel().catch(() => {});
      throw new Problem("RangesNotServed", "The server sends only whole files, and no ranges of them.", response.status);
    }
    const [, start, total] = /^bytes (\d+)-\d+\/(\d+)$/.exec(response.headers.get("Content-Range")) ?? [];
    if (start !== undefined && Number(start) !== offset) throw damaged("the server sent another range than the one asked for");
    return { bytes: await response.arrayBuffer(), size: Number(total), etag: response.headers.get("ETag") };
  };
}

/** Rejects as soon as the signal is aborted. */
function within(signal, promise) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort);
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Calls `load` with a signal that is aborted after a time, or by the controller. */
async function limited(load, controller = new AbortController()) {
  const timer = setTimeout(() => controller.abort(), LIMIT_MS);
  try {
    return await load(controller.signal);
  } catch (error) {
    throw controller.signal.aborted ? Problem.noConnection : error;
  } finally {
    clearTimeout(timer);
  }
}

/** Loads each piece of a file once, however many ask for it at the same time, and keeps those that were used last. */
class Pieces {
  #pieces = new Map(); // by the offset; the one that was used last is the last
  #keptBytes = 0;

  async get(offset, length, load, signal) {
    signal?.throwIfAborted();
    const piece = this.#pieces.get(offset) ?? this.#begin(offset, length, load);
    this.#pieces.delete(offset);
    this.#pieces.set(offset, piece);
    piece.waiting++;
    try {
      return await within(signal, piece.loading);
    } finally {
      piece.waiting--;
      if (!piece.waiting && !piece.isLoaded) {
        this.#forget(piece);
        piece.controller.abort(); // nobody waits for it any more
      }
    }
  }

  #begin(offset, length, load) {
    const piece = { offset, length, controller: new AbortController(), waiting: 0, isLoaded: false };
    piece.loading = limited(load, piece.controller);
    piece.loading.then(
      () => this.#keep(piece),
      () => this.#forget(piece),
    );
    return piece;
  }

  #forget(piece) {
    if (this.#pieces.get(piece.offset) === piece) this.#pieces.delete(piece.offset);
  }

  #keep(piece) {
    piece.isLoaded = true;
    this.#keptBytes += piece.length;
    for (const oldest of this.#pieces.values()) {
      if (this.#keptBytes <= KEPT_BYTES) return;
      if (!oldest.isLoaded) continue;
      this.#forget(oldest);
      this.#keptBytes -= oldest.length;
    }
  }
}

// The file

class PackedSheet {
  #read;
  #opening = null;

  constructor(read) {
    this.#read = read;
  }

  /** The index, which is loaded once. */
  index() {
    this.#opening ??= limited((signal) => Index.load(this.#read, signal)).catch((error) => {
      this.#opening = null;
      throw error;
    });
    return this.#opening;
  }

  async tile(level, column, row, signal) {
    for (let attempt = 1; ; attempt++) {
      const opening = this.index();
      const index = await within(signal, opening);
      try {
        return await index.tile(tileNumber(level, column, row), signal);
      } catch (error) {
        if (error?.type !== "FileChanged" || attempt === 2) throw error;
        if (this.#opening === opening) this.#opening = null; // the sheet was written again
      }
    }
  }
}

/** The index of one version of a file. */
class Index {
  #read;
  #etag;
  #header;
  #root;
  #leaves = new Pieces();
  #tiles = new Pieces();

  static async load(read, signal) {
    const index = new Index();
    await index.#load(read, signal);
    return index;
  }

  async #load(read, signal) {
    const { bytes, size, etag } = await read(0, FIRST_BYTES, signal);
    this.#read = read;
    this.#etag = etag;
    this.#header = parseHeader(bytes);
    const { root, metadata, leaves, tiles } = this.#header;
    const end = Math.max(...[root, metadata, leaves, tiles].map(({ offset, length }) => offset + length));
    if (size < end) throw damaged(`the file has ${size} of its ${end} bytes`);
    const section = async ({ offset, length }) =>
      this.#plain(offset + length <= bytes.byteLength ? bytes.slice(offset, offset + length) : await this.#bytes(offset, length, signal));
    this.#root = parseDirectory(await section(root));
    this.metadata = parseMetadata(await section(metadata), this.#header.levels);
  }

  async #bytes(offset, length, signal) {
    if (length > PIECE_LIMIT_BYTES) throw damaged(`one of its parts has ${length} bytes`);
    const { bytes, etag } = await this.#read(offset, length, signal);
    if (etag && this.#etag && etag !== this.#etag) throw new Problem("FileChanged", "The packed sheet was written again.", 0);
    if (bytes.byteLength !== length) throw damaged(`the file ends within the ${length} bytes at ${offset}`);
    return bytes;
  }

  async #plain(bytes) {
    if (!this.#header.isGzip) return bytes;
    try {
      return await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    } catch {
      throw damaged("its index cannot be decompressed");
    }
  }

  /** The bytes of a tile. Equal tiles are one piece of the file. */
  async tile(number, signal) {
    const { leaves, tiles } = this.#header;
    let directory = this.#root;
    for (let depth = 0; depth < MAX_DEPTH; depth++) {
      const entry = findEntry(directory, number);
      if (!entry) break;
      const section = entry.run ? tiles : leaves;
      if (entry.offset + entry.length > section.length) throw damaged("its index points beyond its end");
      const offset = section.offset + entry.offset;
      if (entry.run) return this.#tiles.get(offset, entry.length, (loading) => this.#bytes(offset, entry.length, loading), signal);
      const load = async (loading) => parseDirectory(await this.#plain(await this.#bytes(offset, entry.length, loading)));
      directory = await this.#leaves.get(offset, entry.length, load, signal);
    }
    throw damaged("its index lacks a tile");
  }
}

function parseHeader(bytes) {
  const text = new TextDecoder("latin1").decode(bytes.slice(0, MAGIC.length));
  if (text !== MAGIC) throw foreign(`it does not begin with “${MAGIC}”`);
  if (bytes.byteLength < HEADER_BYTES) throw damaged("it ends within its header");
  const view = new DataView(bytes);
  const version = view.getUint8(7);
  if (version !== 3) throw foreign(`it has version ${version} of the format, and not 3`);
  const section = (at) => ({ offset: Number(view.getBigUint64(at, true)), length: Number(view.getBigUint64(at + 8, true)) });
  const [compression, tileCompression, tileType, ...levels] = new Uint8Array(bytes, 97, 5);
  if (compression !== NOT_COMPRESSED && compression !== GZIP) throw foreign(`its index has compression ${compression}`);
  if (tileCompression !== NOT_COMPRESSED || tileType !== JPEG) throw foreign("its tiles are not JPEG");
  return { root: section(8), metadata: section(24), leaves: section(40), tiles: section(56), isGzip: compression === GZIP, levels };
}

function parseMetadata(bytes, [minLevel, maxLevel]) {
  let metadata;
  try {
    metadata = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw damaged("its metadata are not JSON");
  }
  const { schema, width, height, tileSize, overlap } = metadata ?? {};
  if (schema > SCHEMA) throw new Problem("NewerSchema", `The packed sheet has schema ${schema}, and this client knows ${SCHEMA}.`, 200);
  const areSizes = [width, height, tileSize, overlap + 1].every((size) => Number.isSafeInteger(size) && size > 0);
  if (schema !== SCHEMA || !areSizes) throw foreign("its metadata lack the sheet's size");
  if (minLevel !== 0 || maxLevel !== maxLevelOf(metadata) || maxLevel > MAX_LEVEL) throw damaged(`it has the levels ${minLevel} to ${maxLevel}`);
  return metadata;
}

/** The entries of a directory, by columns, as they are stored. */
function parseDirectory(buffer) {
  const bytes = new Uint8Array(buffer);
  let at = 0;
  const next = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      if (byte === undefined || factor > 2 ** 49) throw damaged("its index is cut");
      value += (byte % 128) * factor;
      if (byte < 128) return value;
    }
  };
  const count = next();
  if (!count || count > bytes.length / 4) throw damaged("its index is cut");
  const column = (toValue) => {
    const values = new Float64Array(count);
    for (let index = 0; index < count; index++) values[index] = toValue(next(), index, values);
    return values;
  };
  const numbers = column((value, index, values) => value + (index ? values[index - 1] : 0));
  const runs = column((value) => value);
  const lengths = column((value) => value);
  const offsets = column((value, index, values) => (value || !index ? value - 1 : values[index - 1] + lengths[index - 1]));
  return { numbers, runs, lengths, offsets };
}

/** The entry that holds a tile, or leads to it; null if there is none. */
function findEntry({ numbers, runs, lengths, offsets }, number) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (numbers[middle] <= number) low = middle + 1;
    else high = middle;
  }
  const index = low - 1;
  if (index < 0 || (runs[index] && number >= numbers[index] + runs[index])) return null;
  return { run: runs[index], length: lengths[index], offset: offsets[index] };
}

/** The place of a tile on the Hilbert curves of all levels: https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md#entries */
function tileNumber(level, column, row) {
  let number = (4 ** level - 1) / 3;
  let [x, y] = [column, row];
  for (let side = 2 ** level / 2; side >= 1; side /= 2) {
    const [right, down] = [x & side ? 1 : 0, y & side ? 1 : 0];
    number += side * side * ((3 * right) ^ down);
    [x, y] = [x & (side - 1), y & (side - 1)];
    if (down) continue;
    if (right) [x, y] = [side - 1 - x, side - 1 - y];
    [x, y] = [y, x];
  }
  return number;
}
