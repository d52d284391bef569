class Service {
  #greeting = 'of an instance';

  handler() {
    return this.#greeting;
  }
}

module.exports = new Service();
