// Forwards R2's event notifications from a queue to SiteLink: POST /v1/events/r2, signed. SiteLink says of each message what to do.

const LONGEST = 16384; // an event is far shorter; of anything else the beginning is enough to see what it is
const PATIENCE_MS = 60_000;

export default {
  async queue(batch, env) {
    const messages = batch.messages.map(({ id, attempts, body }) => ({ id, attempts, body: text(body).slice(0, LONGEST) }));
    const answer = await forward(JSON.stringify({ messages }), env);
    const acks = new Set(answer.acks);
    const delays = new Map((answer.retries ?? []).map(({ id, delaySeconds }) => [id, delaySeconds]));
    for (const message of batch.messages) {
      if (acks.has(message.id)) message.ack();
      else message.retry({ delaySeconds: delays.get(message.id) ?? Math.min(3600, 5 * 2 ** (message.attempts - 1)) });
    }
  },
};

async function forward(body, env) {
  try {
    const timestamp = String(Math.floor(Date.now() / 1000));
    const response = await fetch(env.SITELINK_EVENTS_URL, {
      method: "POST",
      body,
      headers: {
        "Content-Type": "application/json",
        "SiteLink-Timestamp": timestamp,
        "SiteLink-Signature": await signature(env.SITELINK_EVENTS_SECRET, `${timestamp}.${body}`),
      },
      redirect: "manual",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    const answer = await response.json();
    if (response.status === 200 || (response.status === 503 && Array.isArray(answer.acks))) return answer;
    console.error(`SiteLink answers ${response.status}: ${JSON.stringify(answer).slice(0, 500)}`);
  } catch (error) {
    console.error(`SiteLink does not answer: ${error}`);
  }
  return {}; // every message comes again
}

async function signature(secret, data) {
  const bytes = (value) => new TextEncoder().encode(value);
  const key = await crypto.subtle.importKey("raw", bytes(secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const digest = new Uint8Array(await crypto.subtle.sign("HMAC", key, bytes(data)));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A message as it was sent; what has no such form is no event either.
function text(body) {
  if (typeof body === "string") return body;
  if (body instanceof ArrayBuffer || ArrayBuffer.isView(body)) return new TextDecoder().decode(body);
  try {
    return JSON.stringify(body) ?? String(body);
  } catch {
    return String(body);
  }
}
