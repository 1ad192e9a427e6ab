export type UploadStatus = "queued" | "processing" | "complete" | "partial" | "failed" | "cancelled";
export type SheetStatus = "pending" | "tiling" | "uploading" | "ready" | "failed";

/** `organization/project/plan/upload`. */
export type UploadRef = string;
/** `organization/project/plan`. */
export type PlanRef = string;

/** A sheet. Fields that are not known yet are null. */
export interface Sheet {
  /** Counts from 1. */
  number: number;
  status: SheetStatus;
  /** The upload's version when the sheet last changed. */
  version: number;
  title: string | null;
  /** Pixels. */
  width: number | null;
  /** Pixels. */
  height: number | null;
  dpi: number | null;
  scaled: boolean;
  tiles: number | null;
  bytes: number | null;
  reason: string | null;
  detail: string | null;
  notes: { type: string; message: string }[];
  /** Whether `thumbnail` has something to load: before the tiles, and as long as the sheet is being made or is ready. */
  thumbnail: boolean;
  /** How the sheet lies in the bucket; known once it is ready. */
  layout: "exploded" | "packed" | "both" | null;
}

/** The server's status of an upload: api/README.md, "The progress". */
export interface Status {
  ref: UploadRef;
  upload: string;
  status: UploadStatus;
  version: number;
  completedPages: number;
  totalPages: number;
  /** Percent, 100 only when every sheet is ready. */
  progress: number;
  fileName: string | null;
  sizeBytes: number | null;
  /** Times are RFC 3339 in UTC. */
  createdAt: string;
  startedAt: string | null;
  updatedAt: string;
  completedAt: string | null;
  reconciled: boolean;
  reconciledAt: string | null;
  warning: string | null;
  reason: string | null;
  detail: string | null;
  forecast: Record<string, number> | null;
  receipt: Record<string, number> | null;
  /** How long the upload will probably still take, counted from `updatedAt`. */
  secondsLeft: { low: number; high: number } | null;
  sheets: Sheet[];
  links: { self: string; events: string; page: string };
}

/** One state of a watched upload. */
export interface Progress extends Status {
  /** The sheets that are new or different since the state before. */
  changed: Sheet[];
  /** True in the last state, and only there. */
  ended: boolean;
}

/**
 * `live`, `reconnecting` after a lost connection, `checking` when the server was silent for too long, `unreachable` when tries to connect fail,
 * `ended` at the end.
 */
export type Connection = "live" | "reconnecting" | "checking" | "unreachable" | "ended";

export interface Place {
  /** The server's address, as `https://plans.example.com`. Default: the server that the page came from. */
  server?: string;
}

/**
 * What is sent to be let in; nothing by default, except the browser's cookie to its own server. A function is called when the first request
 * needs the value, again in good time before the value expires, and after each 401, with the REF (with an empty string by `upload`, with the
 * plan by `uploads`). When it fails, it is called again later.
 */
export interface ReadAccess extends WriteAccess {
  /** Lets its holder read one upload or plan. Sent in the header `SiteLink-Ticket`; in an address only for thumbnails. */
  ticket?: string | ((ref: UploadRef) => string | Promise<string>);
}

export interface WriteAccess {
  /** Sent as `Authorization: Bearer`. */
  token?: string | ((ref: UploadRef) => string | Promise<string>);
  /** For a page of the server itself: called after a 401, returns when the browser has a new cookie. All calls wait for it, without a time limit. */
  session?: () => unknown;
}

/** A refused or failed request. */
export class Problem extends Error {
  constructor(type: string, detail: string, status: number);
  /** A name from api/README.md, "Errors" or "A packed sheet as one file"; `NoConnection`, `NoTicket` and `BadReference` are this client's own. */
  readonly type: string;
  /** The HTTP status; 0 when no answer came. */
  readonly status: number;
  /** Whether the same request may succeed later. */
  readonly transient: boolean;
}

export interface UploadOptions extends Place, WriteAccess {
  to: PlanRef;
  /** Default: the file's own name. */
  name?: string;
  /** Options of the upload: api/README.md, "Sending a plan". */
  options?: Record<string, number | string>;
  /** Opens an encrypted PDF. The server forgets it when the upload ends. */
  password?: string;
  /** Makes it safe to send the same file again after a lost connection. With the same key, a file that is sent in parts goes on where it was. */
  idempotencyKey?: string;
  /** Whether the file is sent in parts, straight into the bucket. Default: if it has 64 MiB or more. */
  inParts?: boolean;
  /** Called when a file that is sent in parts has a REF, for `abortUpload`. */
  onBegin?: (ref: UploadRef) => void;
  /** Called with bytes. Where there is no XMLHttpRequest, as in Node.js, only at the beginning and the end of the file or of a part. */
  onProgress?: (sent: number, total: number) => void;
  /** Stops the upload, which then throws the signal's reason. Parts that are sent stay for 7 days. */
  signal?: AbortSignal;
}

/**
 * Sends a plan; returns when the server has accepted it. In React Native `file` is `{ uri, name }`.
 *
 * A large file is sent in parts, several at once, each again if it fails. When the upload has ended early, also by a reload of the page, the same
 * call goes on where it was: a browser knows the same `File` by name, size and `lastModified`; elsewhere keep the `idempotencyKey`. Where the page
 * does not reach the bucket, the file is sent whole.
 *
 * @throws {Problem} The server refused the file or was not reached.
 */
export function upload(
  file: Blob | { uri: string; name?: string },
  options: UploadOptions,
): Promise<{ ref: UploadRef; upload: string; status: UploadStatus; links: Status["links"] }>;

/** Forgets an upload that was begun in parts and is not accepted. */
export function abortUpload(ref: UploadRef, options?: Place & WriteAccess): Promise<void>;

export interface WatchOptions extends Place, ReadAccess {
  /** Ends the watching; the iterator then ends without an error. */
  signal?: AbortSignal;
  /** `poll` never opens a stream. Default: `auto`, a stream, and long polls where streams do not get through. */
  transport?: "auto" | "poll";
  onConnection?: (connection: Connection) => void;
}

export interface Watching extends AsyncIterableIterator<Progress> {
  next(): Promise<IteratorResult<Progress, undefined>>;
  return(): Promise<IteratorResult<Progress, undefined>>;
  /** Connects again at once. A browser needs no call; an app calls it when it comes back to the foreground. */
  wake(): void;
}

/**
 * Follows an upload until its end. Each state is the newest one: a slow consumer gets fewer states and misses no change. Lost connections are
 * restored without end, at the version that is known. After the state with `ended` the iterator ends.
 *
 * @throws {Problem} By the iterator: the server has no such upload, or refuses access also with a new ticket.
 */
export function watch(ref: UploadRef, options?: WatchOptions): Watching;

/** One answer with the whole state now. */
export function status(ref: UploadRef, options?: Place & ReadAccess & { signal?: AbortSignal }): Promise<Status>;

/** An upload in the list of its plan. */
export type ListedUpload = Pick<
  Status,
  "ref" | "upload" | "fileName" | "sizeBytes" | "createdAt" | "links" | "status" | "warning" | "progress" | "completedPages" | "totalPages"
>;

/** The uploads of a plan, newest first: 50, or `limit`, at most 200. `nextCursor` of the answer is the `cursor` of the next call. */
export function uploads(
  plan: PlanRef,
  options?: Place & ReadAccess & { limit?: number; cursor?: string; signal?: AbortSignal },
): Promise<{ uploads: ListedUpload[]; nextCursor: string | null }>;

/** Stops an upload; its ready sheets stay. */
export function cancel(ref: UploadRef, options?: Place & WriteAccess): Promise<{ ref: UploadRef }>;
/** Deletes an upload and its sheets. */
export function remove(ref: UploadRef, options?: Place & WriteAccess): Promise<{ ref: UploadRef }>;
/** Has a sheet tiled before all others that wait. */
export function prioritize(ref: UploadRef, sheet: number, options?: Place & WriteAccess): Promise<{ ref: UploadRef }>;
/** Tries a failed sheet again, also after the end of the upload. */
export function retry(ref: UploadRef, sheet: number, options?: Place & WriteAccess & { password?: string }): Promise<{ ref: UploadRef }>;

/** A tile source for OpenSeadragon 4 or later: `viewer.open(await tileSource(ref, 1))`. */
export interface TileSource {
  width: number;
  height: number;
  tileSize: number;
  tileOverlap: number;
  minLevel: number;
  maxLevel: number;
  getTileUrl(level: number, column: number, row: number): string;
  downloadTileStart(job: unknown): void;
  downloadTileAbort(job: unknown): void;
}

/**
 * Where the one file of a packed sheet is read from: `true` for the server, or a function that gives a signed address of the bucket. It is called
 * again in good time before the address expires, and when it is refused.
 */
export type Packed = boolean | ((ref: UploadRef, sheet: number) => string | Promise<string>);

/**
 * Reads the sheet's `.dzi`. The tiles are loaded with the ticket in a header. With `packed`, they are read out of the one file of a packed sheet
 * instead, as by `packedTileSource`.
 *
 * @throws {Problem} The sheet is not ready, or the server was not reached.
 */
export function tileSource(
  ref: UploadRef,
  sheet: number,
  options?: Place & ReadAccess & { packed?: Packed; signal?: AbortSignal },
): Promise<TileSource>;

/** The address of a thumbnail for an `<img>`, with the ticket in it. Another origin's `<img>` needs `crossorigin="anonymous"`. */
export function thumbnail(ref: UploadRef, sheet: number, options?: Place & ReadAccess): Promise<string>;
/** The thumbnail itself: for when the ticket in an address has expired, and for access by a token. */
export function thumbnailBlob(ref: UploadRef, sheet: number, options?: Place & ReadAccess & { signal?: AbortSignal }): Promise<Blob>;

export function isFinal(status: UploadStatus): boolean;
/** The ids of a path with `length` ids; null when it is malformed. */
export function parsePath(text: string, length: number): string[] | null;
export function uploadsUrl(plan: PlanRef, options?: Place): string;
export function uploadUrl(ref: UploadRef, options?: Place): string;
export function thumbnailUrl(ref: UploadRef, sheet: number, options?: Place): string;
export function descriptorUrl(ref: UploadRef, sheet: number, options?: Place): string;
/** The address of a packed sheet's one file. */
export function packedUrl(ref: UploadRef, sheet: number, options?: Place): string;
/** With `{z}` for the level, `{x}` for the column and `{y}` for the row. */
export function tileUrlTemplate(ref: UploadRef, sheet: number, options?: Place): string;
