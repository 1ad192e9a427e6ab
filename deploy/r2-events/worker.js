// Forwards R2's event notifications from a queue to SiteLink by a POST /v1/events/r2, signed by Standard Webhooks. SiteLink answers which messages are done.

const MAX_BODY_CHARS = 16384; // an event is far shorter; the beginning of any other message is enough to recognize it
const ANSWER_TIMEOUT_MS = 60_000;

export default {
  async queue(batch, env) {
    const messages = batch.messages.map(({ id, attempts, body }) => ({ id, attempts, body: text(body).slice(0, MAX_BODY_CHARS) }));
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
    const id = crypto.randomUUID();
    const timestamp = String(Math.floor(Date.now() / 1000));
    const response = await fetch(env.SITELINK_EVENTS_URL, {
      method: "POST",
      body,
      headers: {
        "Content-Type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": `v1,${await signature(env.SITELINK_EVENTS_SECRET, `${id}.${timestamp}.${body}`)}`,
      },
      redirect: "manual",
      signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS),
    });
    const answer = await response.json();
    if (response.status === 200 || (response.status === 503 && Array.isArray(answer.acks))) return answer;
    console.error(`SiteLink answers ${response.status}: ${JSON.stringify(answer).slice(0, 500)}`);
  } catch (error) {
    console.error(`SiteLink does not answer: ${error}`);
  }
  return {}; // no message is done: the queue sends each again
}

// As Standard Webhooks signs: a secret with whsec_ is base64, any other is the key as it stands.
async function signature(secret, data) {
  const bytes = (value) => new TextEncoder().encode(value);
  const raw = secret.startsWith("whsec_") ? Uint8Array.from(atob(secret.slice(6)), (letter) => letter.charCodeAt(0)) : bytes(secret);
  const key = await crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const digest = new Uint8Array(await crypto.subtle.sign("HMAC", key, bytes(data)));
  return btoa(String.fromCharCode(...digest));
}

// The message's body as text. A body that cannot be JSON is not an event, so any text does.
function text(body) {
  if (typeof body === "string") return body;
  if (body instanceof ArrayBuffer || ArrayBuffer.isView(body)) return new TextDecoder().decode(body);
  try {
    return JSON.stringify(body) ?? String(body);
  } catch {
    return String(body);
  }
}
