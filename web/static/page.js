/**
 * The broker's own page: a queue of files, at most three under way, one row each.
 *
 * @import { RouteChoice, UploadError, UploadProgress, UploadResult } from './upload-to-coze.js'
 * @typedef {'waiting' | 'minting' | 'uploading' | 'done' | 'failed' | 'cancelled'} State
 * @typedef {{ version: string, upstream: string, direct_max_bytes: number, max_upload_bytes: number,
 *   direct_available: boolean, publishable_key: string | null }} Service
 */
import { uploadToCoze } from './upload-to-coze.js';

const MAX_RUNNING = 3;

const STATUS = {
  waiting: 'Waiting',
  minting: 'Asking the broker for a token',
  uploading: 'Uploading',
  done: 'Done',
  failed: 'Failed',
  cancelled: 'Cancelled',
};

const ROUTES = { direct: 'Direct to Coze', proxy: 'Through the broker' };

/** Reasons of the broker's policy, and the helper's two for a fallback. @type {Record<string, string>} */
const REASONS = {
  small_file: 'small and not sensitive',
  large_file: 'too large for the direct route',
  sensitive: 'marked as sensitive',
  no_browser_app: 'the direct route is not set up here',
  proxy_requested: 'chosen under Advanced',
  direct_unavailable: 'the direct route is not available at the moment',
  key_bound_to_types: 'the key is bound to types of files, which the broker checks',
  direct_unreachable: 'fallback: the browser could not reach Coze',
  direct_failed: 'fallback: Coze did not take it on the direct route',
};

/** Not `retryable` for a program, but a person may decide to. */
const PERSON_MAY_RETRY = ['outcome_unknown', 'bad_answer'];

/** @template {Element} [T=HTMLElement] @param {string} id @returns {T} */
const byId = (id) => /** @type {any} */ (document.getElementById(id));

const dropZone = byId('drop-zone');
const fileInput = /** @type {HTMLInputElement} */ (byId('file-input'));
const keyInput = /** @type {HTMLInputElement} */ (byId('key-input'));
const sensitive = /** @type {HTMLInputElement} */ (byId('sensitive'));
const routeSelect = /** @type {HTMLSelectElement} */ (byId('route-select'));
const rowTemplate = /** @type {HTMLTemplateElement} */ (byId('row'));

/** @type {Service | undefined} */
let service;
/** @type {Upload[]} */
let uploads = [];

class Upload {
  /** @type {State} */
  state = 'waiting';
  #control = new AbortController();
  #announced = '';

  /** @param {File} file @param {{ sensitive: boolean, route: 'auto' | 'proxy' }} wishes */
  constructor(file, wishes) {
    this.file = file;
    this.wishes = wishes;
    this.row = /** @type {HTMLElement} */ (rowTemplate.content.cloneNode(true)).querySelector('li') ?? fail();
    this.#part('file-name').textContent = file.name;
    this.#select('.file-size').textContent = size(file.size);
    this.#part('progress').setAttribute('aria-label', `Progress of ${file.name}`);
    this.#button('cancel', () => this.cancel());
    this.#button('retry', () => this.retry());
    this.#button('copy', (button) => this.#copy(button));
  }

  /** @param {string} key */
  async run(key) {
    const { signal } = this.#control;
    this.#enter('minting');
    try {
      const result = await uploadToCoze(this.file, {
        ...this.wishes,
        publishableKey: key,
        signal,
        onRoute: (choice) => this.#showRoute(choice),
        onProgress: (progress) => this.#showProgress(progress),
      });
      this.#showResult(result);
    } catch (error) {
      if (signal.aborted) this.#enter('cancelled');
      else this.#showError(/** @type {UploadError} */ (error));
    }
  }

  cancel() {
    this.#control.abort();
    if (this.state === 'waiting') this.#enter('cancelled');
  }

  retry() {
    this.#control = new AbortController();
    this.#part('error').hidden = true;
    this.#part('route').hidden = true;
    this.#part('route-reason').textContent = '';
    delete this.row.dataset.route;
    this.#showProgress({ loaded: 0, total: this.file.size, percent: 0 });
    this.wait();
    pump();
  }

  /** Said after the row is in the page, so that it is heard. */
  wait() {
    this.#enter('waiting', currentKey() ? undefined : 'Waiting for a publishable key');
  }

  /** @param {State} state @param {string} [words] */
  #enter(state, words = STATUS[state]) {
    const hadFocus = this.row.contains(document.activeElement);
    this.state = state;
    this.row.dataset.state = state;
    this.#say(words);
    this.#part('cancel').hidden = isOver(this);
    if (state !== 'failed') this.#part('retry').hidden = state !== 'cancelled';
    if (hadFocus && document.activeElement === document.body) this.row.focus();
    tally();
  }

  /** A live region: only said when it changes. @param {string} words */
  #say(words) {
    if (words !== this.#announced) this.#part('status').textContent = words;
    this.#announced = words;
  }

  /** @param {RouteChoice} choice */
  #showRoute({ route, reason, cause }) {
    this.row.dataset.route = route;
    const badge = this.#part('route');
    badge.dataset.kind = route;
    badge.replaceChildren(routeIcon(route), ROUTES[route] ?? route);
    badge.hidden = false;
    const words = this.#part('route-reason');
    words.textContent = REASONS[reason] ?? reason;
    words.title = cause?.message ?? '';
    this.#enter('uploading');
  }

  /** @param {UploadProgress} progress */
  #showProgress({ loaded, total, percent }) {
    const bar = /** @type {HTMLProgressElement} */ (this.#part('progress'));
    bar.value = percent;
    bar.textContent = `${percent} %`;
    this.#select('.percent').textContent = `${percent} %`;
    if (this.state !== 'uploading') return;
    this.#say(loaded === total ? 'All sent, waiting for the file_id' : STATUS.uploading);
  }

  /** @param {UploadResult} result */
  #showResult({ file_id }) {
    this.#part('file-id').textContent = file_id;
    this.#select('.row-id').hidden = false;
    this.#enter('done');
  }

  /** @param {UploadError} error */
  #showError({ message, code, status, requestId, retryable }) {
    this.#select('.error-text').textContent = message;
    const print = [code ?? 'error', status && `HTTP ${status}`, requestId && `request ${requestId}`];
    this.#select('.error-print').textContent = print.filter(Boolean).join(' · ');
    this.#part('error').hidden = false;
    // A mistyped key can be put right.
    const keyWasTyped = !service?.publishable_key && (status === 401 || status === 403);
    this.#part('retry').hidden = !retryable && !keyWasTyped && !PERSON_MAY_RETRY.includes(code);
    this.#enter('failed');
  }

  /** @param {HTMLElement} button */
  async #copy(button) {
    const id = this.#part('file-id');
    let outcome = 'Copied';
    try {
      await navigator.clipboard.writeText(id.textContent ?? '');
    } catch {
      // No clipboard on plain http or without permission: the text is selected for the keyboard.
      getSelection()?.selectAllChildren(id);
      outcome = 'Selected';
    }
    this.#caption(button, outcome);
    this.#say(`file_id ${outcome.toLowerCase()}`);
    setTimeout(() => {
      this.#caption(button, 'Copy');
      this.#say(STATUS[this.state]);
    }, 2000);
  }

  /** @param {string} name @param {(button: HTMLElement) => void} act */
  #button(name, act) {
    const button = this.#part(name);
    this.#caption(button, button.textContent ?? '');
    button.addEventListener('click', () => act(button));
  }

  /** A button says to the ear which file it is for. @param {HTMLElement} button @param {string} words */
  #caption(button, words) {
    button.textContent = words;
    button.setAttribute('aria-label', `${words}: ${this.file.name}`);
  }

  /** @param {string} name */
  #part(name) {
    return this.#select(`[data-testid="${name}"]`);
  }

  /** @param {string} selector @returns {HTMLElement} */
  #select(selector) {
    return this.row.querySelector(selector) ?? fail();
  }
}

/** @returns {never} */
function fail() {
  throw new Error('The page and its script do not match.');
}

/** @param {Upload} upload */
function isOver({ state }) {
  return state === 'done' || state === 'failed' || state === 'cancelled';
}

function currentKey() {
  return service?.publishable_key || keyInput.value.trim();
}

/** Starts what may start. */
function pump() {
  const key = currentKey();
  if (!service || !key) return;
  const running = uploads.filter(({ state }) => state === 'minting' || state === 'uploading').length;
  const next = uploads.filter(({ state }) => state === 'waiting').slice(0, MAX_RUNNING - running);
  for (const upload of next) upload.run(key).finally(pump);
}

/** @param {Iterable<File>} files */
function add(files) {
  const wishes = { sensitive: sensitive.checked, route: /** @type {'auto' | 'proxy'} */ (routeSelect.value) };
  for (const file of files) {
    const upload = new Upload(file, wishes);
    uploads.push(upload);
    byId('rows').append(upload.row);
    upload.wait();
  }
  tally();
  if (uploads.length && service && !currentKey()) keyInput.focus();
  pump();
}

function tally() {
  const done = uploads.filter(({ state }) => state === 'done').length;
  byId('files').hidden = !uploads.length;
  byId('tally').textContent = `${done} of ${uploads.length} done`;
  byId('clear').hidden = !uploads.some(isOver);
}

/** @param {'direct' | 'proxy'} route */
function routeIcon(route) {
  return /** @type {Element} */ (document.querySelector(`.route-figure .badge[data-kind="${route}"] svg`)).cloneNode(true);
}

/** @param {number} bytes */
function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  const power = Math.min(3, Math.floor(Math.log10(bytes) / 3));
  const unit = ['', 'kB', 'MB', 'GB'][power];
  return `${(bytes / 1000 ** power).toLocaleString('en', { maximumSignificantDigits: 3 })} ${unit}`;
}

/** A limit is often a round number of MiB. @param {number} bytes */
function limit(bytes) {
  return bytes % 2 ** 20 ? size(bytes) : `${bytes / 2 ** 20} MiB`;
}

async function askService() {
  try {
    const response = await fetch('/', { headers: { Accept: 'application/json' }, cache: 'no-store' });
    service = /** @type {Service} */ (await response.json());
  } catch {
    byId('service').textContent = 'The broker does not answer. Reload this page once it is up.';
    byId('service').classList.add('trouble');
    return;
  }
  const { upstream, direct_available, direct_max_bytes, max_upload_bytes, version, publishable_key } = service;
  const host = new URL(upstream).host;
  byId('service').textContent = direct_available
    ? `Files under ${limit(direct_max_bytes)} go straight to ${host}; larger or sensitive ones, up to ${limit(max_upload_bytes)}, through this broker.`
    : `All files, up to ${limit(max_upload_bytes)}, go to ${host} through this broker.`;
  if (!direct_available) {
    byId('direct-text').textContent = 'Not set up on this broker. It takes a second Coze OAuth app that may only upload.';
  }
  byId('version').textContent = `Coze upload broker ${version}`;
  byId('key-form').hidden = Boolean(publishable_key);
  pump();
}

fileInput.addEventListener('change', () => {
  add([...(fileInput.files ?? [])]);
  fileInput.value = ''; // so that the same file can be chosen again
});

// A drop that misses the zone must not make the browser open the file.
document.addEventListener('dragover', (event) => {
  event.preventDefault();
  dropZone.classList.toggle('over', dropZone.contains(/** @type {Node} */ (event.target)));
});
document.addEventListener('drop', (event) => {
  event.preventDefault();
  dropZone.classList.remove('over');
  if (dropZone.contains(/** @type {Node} */ (event.target))) add(event.dataTransfer?.files ?? []);
});
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) dropZone.classList.remove('over');
});
document.addEventListener('paste', (event) => add(event.clipboardData?.files ?? []));

byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  pump();
});
keyInput.addEventListener('change', pump);

byId('clear').addEventListener('click', () => {
  for (const { row } of uploads.filter(isOver)) row.remove();
  uploads = uploads.filter((upload) => !isOver(upload));
  tally();
  fileInput.focus();
});

addEventListener('beforeunload', (event) => {
  if (!uploads.every(isOver)) event.preventDefault();
});

byId('origin').textContent = location.origin;
askService();
