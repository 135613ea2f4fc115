"use strict";
// The service worker: after the first visit the page opens with the server stopped. What the server sends begins with a line
// that names this version's files, LAB; so the worker changes when any of them does, and the browser fetches them all anew.
// It answers for the page and for these files, and for nothing else.

const PAGE = new URL("../browser", location).href;
const KEPT = `${registration.scope} ${LAB.version}`;
const FILES = LAB.files.map(file => new URL(file, location).href);  // with their checksums: what such an address holds never changes
const PATIENCE = 4000;  // milliseconds: how long a server may take that is only half there

addEventListener("install", event => event.waitUntil(keep()));
addEventListener("activate", event => event.waitUntil(tidy()));
addEventListener("fetch", event => {
  const {method, url, mode} = event.request;
  if (method !== "GET") return;
  if (mode === "navigate" && url.split(/[?#]/)[0] === PAGE) event.respondWith(page());
  else if (FILES.includes(url)) event.respondWith(kept(event.request));
});

// all of this version's files, or none
async function keep() {
  const cache = await caches.open(KEPT);
  await cache.addAll([PAGE, ...FILES]);
  await skipWaiting();
}

// what earlier versions left, and then this one answers for the pages that are open already
async function tidy() {
  const names = await caches.keys(), ours = name => name.startsWith(registration.scope + " ");
  await Promise.all(names.filter(name => ours(name) && ![KEPT, `${registration.scope} model`].includes(name)).map(name => caches.delete(name)));
  await clients.claim();
}

// the server's own page while there is one, so that a new version shows at once; a proxy's "bad gateway" is none
async function page() {
  try {
    const answer = await fetch(PAGE, {cache: "no-cache", signal: AbortSignal.timeout(PATIENCE)});
    if (answer.ok) return answer;
  } catch { /* the server is stopped */ }
  return await caches.match(PAGE, {cacheName: KEPT}) ?? Response.error();
}

const kept = async request => await caches.match(request, {cacheName: KEPT}) ?? fetch(request);
