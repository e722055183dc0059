"use strict";
// Talking to the desk's server: JSON, one function a route, and patience when it does not answer.

const byId = (id) => document.getElementById(id);

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

class Unreachable extends Error {}

async function call(path, body) {
  let response;
  try {
    response = await fetch(path, body === undefined ? {} : { method: "POST", body: JSON.stringify(body) });
  } catch (error) {
    throw new Unreachable(error.message);
  }
  const text = await response.text();
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    answer = { error: text || `the server answered ${response.status}` };
  }
  if (response.status === OTHER_IMAGES) loadAgain(answer.error);
  if (!response.ok) throw new Refused(response.status, answer.error);
  return answer;
}

const OTHER_IMAGES = 410;

// The page as the desk is now, at the image of the same name if it is there, with what is to be told.
function loadAgain(message) {
  const at = desk.info?.images[desk.number]?.name;
  sessionStorage.setItem("grainmill-loaded-again", JSON.stringify({ message, at }));
  location.reload();
}

// What a page that was loaded again is to tell, once.
function loadedAgain() {
  const told = JSON.parse(sessionStorage.getItem("grainmill-loaded-again") ?? "null");
  sessionStorage.removeItem("grainmill-loaded-again");
  return told;
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// A change is sent until the server has answered. Its mark says that it is one and the same, so it is done once.
async function change(path, body) {
  const marked = { ...body, ...me(), request: mark() };
  for (;;) {
    try {
      return await call(path, marked);
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      serverGone(true);
      await pause(1000);
    }
  }
}

const mark = () => crypto.randomUUID();

// This page's own mark, the same after a reload. A duplicated tab begins with the mark of the first one, which holds a lock
// of that name as long as it is open; so the second takes another and both have images of their own.
async function ownMark() {
  const last = sessionStorage.getItem("grainmill-person");
  if (!last || !(await held(last))) {
    const fresh = mark();
    sessionStorage.setItem("grainmill-person", fresh);
    await held(fresh);
  }
}

// Whether this page has the lock of a name from now on.
function held(name) {
  if (!navigator.locks) return Promise.resolve(true);
  return new Promise((resolve) => {
    navigator.locks.request(`grainmill-${name}`, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      return lock && new Promise(() => {});
    });
  });
}

// Who sends a message, with the name that others see, and for which images this page was loaded.
const me = () => ({ person: sessionStorage.getItem("grainmill-person"), name: byId("person").value.trim() || "somebody", images: desk.info.mark });

const imagePath = (number, rest = "") => `api/images/${number}${rest}`;
