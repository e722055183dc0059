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
  if (!response.ok) throw new Refused(response.status, answer.error);
  return answer;
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

// This page's own mark, the same after a reload, and the name that others see.
function me() {
  let person = sessionStorage.getItem("grainmill-person");
  if (!person) {
    person = mark();
    sessionStorage.setItem("grainmill-person", person);
  }
  return { person, name: byId("person").value.trim() || "somebody" };
}

const picturePath = (number, rest = "") => `api/pictures/${number}${rest}`;
