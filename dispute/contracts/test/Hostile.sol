// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// How a token behaves from now on. Anybody may change it at any time: a token is free to turn on its holders.
enum Mood {
    Honest,
    // Takes a hundredth of every transfer.
    Fee,
    // Moves nothing and returns false.
    False,
    // Moves, and returns nothing, like the oldest dollar token.
    Silent,
    // Moves nothing and returns true.
    Liar,
    // Reverts.
    Reverts,
    // Uses up all gas it gets.
    Burns,
    // Returns a megabyte.
    Floods,
    // Calls back before it moves, and again after.
    Reenters
}

/// @title A token with moods
contract MoodyToken {
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;
    mapping(address => bool) public banned;
    Mood public mood;
    address public target;
    bytes public order;
    /// Callbacks that got through; the guard's test.
    uint256 public reentered;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function set(Mood mood_, address target_, bytes calldata order_) external {
        (mood, target, order) = (mood_, target_, order_);
    }

    function ban(address account, bool is_) external {
        banned[account] = is_;
    }

    function approve(address spender, uint256 amount) external returns (bool) {
        allowance[msg.sender][spender] = amount;
        return true;
    }

    function transfer(address to, uint256 amount) external {
        _move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external {
        require(allowance[from][msg.sender] >= amount, "allowance");
        if (allowance[from][msg.sender] != type(uint256).max) allowance[from][msg.sender] -= amount;
        _move(from, to, amount);
    }

    function _move(address from, address to, uint256 amount) private {
        require(!banned[from] && !banned[to], "banned");
        if (mood == Mood.Reverts) revert("moody");
        if (mood == Mood.Burns) while (true) {}
        if (mood == Mood.False) return _answer(0);
        if (mood == Mood.Liar) return _answer(1);
        if (mood == Mood.Floods) {
            assembly ("memory-safe") {
                revert(mload(0x40), 1000000)
            }
        }
        if (mood == Mood.Reenters) _callBack();
        require(balanceOf[from] >= amount, "balance");
        balanceOf[from] -= amount;
        balanceOf[to] += mood == Mood.Fee ? amount - amount / 100 : amount;
        if (mood == Mood.Reenters) _callBack();
        if (mood == Mood.Silent) return;
        _answer(1);
    }

    function _callBack() private {
        (bool done,) = target.call(order);
        if (done) ++reentered;
    }

    function _answer(uint256 word) private pure {
        assembly ("memory-safe") {
            mstore(0x00, word)
            return(0x00, 0x20)
        }
    }
}

/// @title A payout account that is a contract, with moods of its own
contract MoodyReceiver {
    Mood public mood;
    address public target;
    bytes public order;
    uint256 public reentered;

    function set(Mood mood_, address target_, bytes calldata order_) external {
        (mood, target, order) = (mood_, target_, order_);
    }

    receive() external payable {
        if (mood == Mood.Reverts || mood == Mood.False) revert("moody");
        if (mood == Mood.Burns) while (true) {}
        if (mood == Mood.Floods) {
            assembly ("memory-safe") {
                revert(mload(0x40), 1000000)
            }
        }
        if (mood == Mood.Reenters) {
            (bool done,) = target.call(order);
            if (done) ++reentered;
        }
    }
}
