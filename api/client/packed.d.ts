import type { ReadAccess, TileSource } from "./sitelink.js";

/** What a packed sheet says of itself. */
export interface PackedMetadata {
  schema: 1;
  /** Counts from 1. */
  sheet: number;
  title?: string;
  /** Pixels. */
  width: number;
  /** Pixels. */
  height: number;
  /** Pixels. */
  tileSize: number;
  /** Pixels. */
  overlap: number;
  format: "jpeg";
  dpi: number;
  scaled: boolean;
  /** `[a, b, c, d, e, f]`: from the page's points to pixels of the full size, x = a * x_pt + c * y_pt + e, y = b * x_pt + d * y_pt + f. */
  transform: [number, number, number, number, number, number];
}

export interface PackedTileSource extends TileSource {
  metadata: PackedMetadata;
}

/**
 * A tile source for OpenSeadragon out of one packed sheet: `viewer.open(await packedTileSource(url))`. The tiles are read by range requests.
 *
 * @param source The address of `sheet-N.pmtiles`; a function that gives a signed address, which is called again in good time before that expires,
 *   and when it is refused; or the file itself, for use without a network.
 * @param options `ticket` or `token` for an address of SiteLink; any other `headers`, or a function that gives them, which is called again after
 *   a 401. A function for `ticket` or `token` gets an empty
 *   string. `signal` ends the opening.
 * @throws {Problem} The file is not a packed sheet (`NotAPackedSheet`) or not whole (`DamagedRecord`), a newer release wrote it (`NewerSchema`),
 *   the server sends no ranges (`RangesNotServed`), refuses or was not reached.
 */
export function packedTileSource(
  source: string | URL | Blob | (() => string | Promise<string>),
  options?: ReadAccess & { headers?: Record<string, string> | (() => Record<string, string> | Promise<Record<string, string>>); signal?: AbortSignal },
): Promise<PackedTileSource>;
